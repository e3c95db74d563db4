package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
)

const root = "../../.."

// TestUpToDate compares the generated files with the tables of keys.
func TestUpToDate(t *testing.T) {
	want, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, schemaFile)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is out of date (%v); type: go generate ./ctpolicy/config", schemaFile, err)
	}
	got, err := os.ReadFile(filepath.Join(root, docFile))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := withTables(got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is out of date (%v); type: go generate ./ctpolicy/config", docFile, err)
	}
	for _, k := range ctpolicy.Keys {
		if !strings.Contains(string(got), "| `"+k.Name+"` | `"+k.Example+"`") {
			t.Errorf("%s does not describe %s", docFile, k.Name)
		}
	}
	for _, s := range config.Settings {
		if !strings.Contains(string(got), "| `"+s.Name+"` | `"+s.Default()+"` |") {
			t.Errorf("%s does not describe %s", docFile, s.Name)
		}
	}
}

func TestNoPlaceForTables(t *testing.T) {
	for _, text := range []string{"", "<!-- keys -->\n<!-- end of keys -->", "<!-- keys -->\n<!-- settings -->\n"} {
		if _, err := withTables([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// TestSchema looks at what the schema says of each key.
func TestSchema(t *testing.T) {
	text, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	type value struct {
		Type, Pattern string
		Enum          []string
		AnyOf         []value
		Items         *value
	}
	var s struct {
		AdditionalProperties bool
		Properties           map[string]value
		Defs                 struct {
			Policy struct {
				AdditionalProperties bool
				Properties           map[string]value
				Required             []string
				AnyOf                []struct{ Required []string }
			}
		} `json:"$defs"`
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	policy := &s.Defs.Policy
	if s.AdditionalProperties || policy.AdditionalProperties || len(policy.Required) != 1 || policy.Required[0] != "port" {
		t.Errorf("got %s", text)
	}
	var limits []string
	for _, l := range policy.AnyOf {
		limits = append(limits, l.Required...)
	}
	if want := []string{"max_age", "idle", "max_per_source", "new_per_source"}; !slices.Equal(limits, want) {
		t.Errorf("limits are %v, want %v", limits, want)
	}
	var takes func(v *value, text string) bool
	takes = func(v *value, text string) bool {
		if v.Enum != nil {
			return slices.Contains(v.Enum, text)
		}
		if v.Type == "string" {
			return regexp.MustCompile(v.Pattern).MatchString(text)
		}
		return slices.ContainsFunc(v.AnyOf, func(v value) bool { return takes(&v, text) })
	}
	for _, k := range ctpolicy.Keys {
		v, ok := policy.Properties[k.Name]
		for _, good := range append(k.Words, k.Example) {
			if !ok || !takes(&v, good) {
				t.Errorf("%s: %q is refused", k.Name, good)
			}
		}
		for _, bad := range []string{"", "?", "a b", " "} {
			if takes(&v, bad) {
				t.Errorf("%s: %q is taken", k.Name, bad)
			}
		}
		if hasList := slices.ContainsFunc(v.AnyOf, func(v value) bool { return v.Type == "array" && v.Items != nil }); hasList != k.List {
			t.Errorf("%s: a list: %v", k.Name, hasList)
		}
	}
	for _, setting := range config.Settings {
		if v, ok := s.Properties[setting.Name]; !ok || !takes(&v, setting.Default()) || takes(&v, "?") {
			t.Errorf("%s: %+v", setting.Name, v)
		}
	}
	for key, values := range map[string][]string{
		"port": {"80", "80,443", "8000-8010, ldaps"}, "max_age": {"1h30m", "7d", "1d12h", "1.5h"}, "from": {"10.0.0.0/8, fd00::/8", "::1"},
		"new_per_source": {"1/s", "15/minute", "15/min burst 5"}, "rate": {"5/second"}, "source_prefix6": {"/48"},
	} {
		v := policy.Properties[key]
		for _, text := range values {
			if !takes(&v, text) || ctpolicy.FindKey(key).Set(&ctpolicy.Policy{}, text) != nil {
				t.Errorf("%s: %q is refused", key, text)
			}
		}
	}
}
