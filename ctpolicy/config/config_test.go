package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
)

// good parses what has nothing wrong.
func good(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return f
}

func TestParse(t *testing.T) {
	f := good(t, `# A comment.
policies:
- name: ldap
  port: [389, ldaps]
  max_age: 1h
  from:
  - 10.0.0.0/8
  - fd00::/8,192.0.2.1
  new_per_source: "15/minute burst 10"
- port: 80
  idle: 10m
  jitter: # none
    "5%"
  max_age: 1d
existing: reset
adopt: 0
register_size: 1000
mark: 0x10
`)
	from, _ := ctpolicy.ParsePrefixes("10.0.0.0/8,fd00::/8,192.0.2.1")
	want := &File{
		Policies: []ctpolicy.Policy{
			{
				Name: "ldap", Ports: []ctpolicy.PortRange{{First: 389, Last: 389}, {First: 636, Last: 636}}, MaxAge: time.Hour, From: from,
				NewPerSource: ctpolicy.SourceRate{Count: 15, Per: time.Minute, Burst: 10},
			},
			{Name: "tcp-80", Ports: []ctpolicy.PortRange{{First: 80, Last: 80}}, MaxAge: 24 * time.Hour, Idle: 10 * time.Minute, Jitter: 5},
		},
		Reset: true, RegisterSize: 1000, Mark: 16,
	}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("got %+v\nwant %+v", f, want)
	}
}

func TestDefaults(t *testing.T) {
	for _, text := range []string{"policies: []", "existing: adopt", "{}", "---\npolicies: []\n...\n", "\ufeffpolicies: []\r\n"} {
		if f := good(t, text); !reflect.DeepEqual(f.Policies, New().Policies) || f.Adopt != 5*time.Minute || f.RegisterSize != 65536 || f.Mark != 0x63003000 || f.Reset {
			t.Errorf("%q: got %+v", text, f)
		}
	}
}

// TestLists is each way in which a list can be written.
func TestLists(t *testing.T) {
	for _, port := range []string{"389,636", "[389, 636]", "389, ldaps", "['389', \"636\"]", "[636, ldap]", "\n  - 389\n  - 636", "\n  - 389,636", "[389-389, 636]"} {
		if f := good(t, "policies:\n- max_age: 1h\n  port: "+port+"\n"); ctpolicy.FormatPorts(f.Policies[0].Ports) != "389,636" {
			t.Errorf("%s: got %v", port, f.Policies[0].Ports)
		}
	}
	for _, key := range []string{"from", "to", "except"} {
		for _, list := range []string{"10.0.0.0/8,fd00::/8", "[fd00::/8, 10.0.0.0/8]", "\n  - 10.0.0.0/8\n  - fd00::/8"} {
			f := good(t, "policies:\n- max_age: 1h\n  port: 389\n  "+key+": "+list+"\n")
			if got := ctpolicy.FindKey(key).Get(&f.Policies[0]); got != "10.0.0.0/8,fd00::/8" {
				t.Errorf("%s: %s: got %s", key, list, got)
			}
		}
	}
}

// TestEachKey sets each key of both tables to each value that it must have.
func TestEachKey(t *testing.T) {
	for _, k := range ctpolicy.Keys {
		for _, value := range append([]string{k.Example}, k.Words...) {
			p := ctpolicy.Policy{}
			if err := k.Set(&p, value); err != nil {
				t.Errorf("%s: %v", k.Name, err)
			}
		}
		if k.Get(new(ctpolicy.Policy)) != "" {
			t.Errorf("%s: has a value where none is set", k.Name)
		}
	}
	for _, s := range Settings {
		for _, value := range append([]string{s.Default()}, s.Words...) {
			if err := s.Set(New(), value); err != nil {
				t.Errorf("%s: %v", s.Name, err)
			}
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "curfew.yaml")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := Read(dir); err == nil {
		t.Error("reads a directory")
	}
	if err := os.WriteFile(path, []byte("policies:\n- port: 80\n  max_agee: 1h\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Read(path)
	var list Errors
	if !errors.As(err, &list) || len(list) != 1 || list[0].File != path || list[0].Line != 3 || list[0].Column != 3 {
		t.Fatalf("got %v", err)
	}
	if want := path + ":3:3: max_agee: unknown key, did you mean max_age?"; err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if _, err := Parse("big", []byte(strings.Repeat("#", maxSize+1))); err == nil {
		t.Error("reads a file without end")
	}
}
