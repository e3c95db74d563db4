package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"curfew/ctpolicy"
)

// FuzzParse makes sure that no text stops the parser, that each error has its place and one line, and that what is accepted
// can be written down again by Get.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "broken", "*.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("existing: reset\nadopt: 0\nregister_size: 9\nmark: 0xff\npolicies:\n" +
		"- {name: a, port: [80, 90-99], max_age: 1h30m, jitter: 10%, grace: 5s, rate: 3/s, direction: inbound, from: [10.0.0.0/8, 'fd00::/8'], except: 10.0.0.1}\n" +
		"- {port: ldap, idle: 1d, mode: report, to: 192.0.2.1}\n" +
		"- {port: 443, max_per_source: 3, new_per_source: 15/minute burst 10, source_prefix6: 48, refuse: drop}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data)
		if err != nil {
			mustHavePlaces(t, data, err)
			return
		}
		if err := ctpolicy.Validate(file.Policies); err != nil {
			t.Fatalf("accepted, but not good: %v", err)
		}
		again, err := Parse("again", []byte(format(file)))
		if err != nil || !reflect.DeepEqual(file, again) {
			t.Fatalf("%s\nis %+v, %v\nwant %+v", format(file), again, err, file)
		}
	})
}

func mustHavePlaces(t *testing.T, data []byte, err error) {
	t.Helper()
	var list Errors
	if !errors.As(err, &list) || len(list) == 0 {
		t.Fatalf("no place: %v", err)
	}
	lines := 2 + strings.Count(strings.NewReplacer("\r", "\n", "\u2028", "\n", "\u2029", "\n").Replace(string(data)), "\n")
	for _, e := range list {
		if e.Line < 1 || e.Column < 1 || e.Line > lines {
			t.Errorf("there is no %d:%d", e.Line, e.Column)
		}
		if strings.ContainsAny(e.Error(), "\n\r\t\x1b") {
			t.Errorf("not one line: %q", e.Error())
		}
	}
	if !slices.IsSortedFunc(list, func(a, b Error) int { return 1000000*(a.Line-b.Line) + a.Column - b.Column }) {
		t.Errorf("not in order: %v", list)
	}
}

// format writes a file that says the same, each value as its key writes it.
func format(f *File) string {
	var b strings.Builder
	for _, s := range Settings {
		fmt.Fprintf(&b, "%s: %s\n", s.Name, s.Get(f))
	}
	b.WriteString("policies:\n")
	if len(f.Policies) == 0 {
		return strings.TrimSpace(b.String()) + " []\n"
	}
	for i := range f.Policies {
		b.WriteString("-\n")
		for _, k := range ctpolicy.Keys {
			if value := k.Get(&f.Policies[i]); value != "" {
				fmt.Fprintf(&b, "  %s: %q\n", k.Name, value)
			}
		}
	}
	return b.String()
}
