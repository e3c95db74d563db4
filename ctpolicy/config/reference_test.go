package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"curfew/ctpolicy"
)

// TestReference reads the documented file that is shipped: it is good, and has and explains every key.
func TestReference(t *testing.T) {
	path := filepath.Join("..", "..", "contrib", "curfew.yaml")
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"ldap: max_age 1h, idle 10m, jitter 10%, grace 30s, rate 200/s",
		"web: max_age 30s, max_per_source 10, new_per_source 15/minute burst 10, source_prefix6 64",
		"databases: max_age 8h, mode report, direction forwarded",
	} {
		if p := &f.Policies[i]; p.Name+": "+p.String() != want {
			t.Errorf("got %s: %s\nwant %s", p.Name, p, want)
		}
	}
	for _, s := range Settings {
		if s.Get(f) != s.Default() {
			t.Errorf("%s is %s, and not the default", s.Name, s.Get(f))
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range append(policyWords(), settingWords()...) {
		if !explained(string(text), word) {
			t.Errorf("%s is not explained", word)
		}
	}
}

// explained tells whether a key is there with a comment above it or behind it.
func explained(text, word string) bool {
	key := regexp.MustCompile(`^(- )?` + word + `:`)
	above := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if key.MatchString(line) && (strings.Contains(above, "#") || strings.Contains(line, " # ")) {
			return true
		}
		if line != "" {
			above = line
		}
	}
	return false
}

// TestSyntax compares what a key takes with what its syntax says.
func TestSyntax(t *testing.T) {
	values := []string{
		"1", "9", "64", "0", "389,636", "1h", "1h30m", "7d", "10%", "15/minute", "15/minute burst 10", "3/s", "200/s", "10.0.0.0/8", "::1", "drop", "ldap", "x y", "any", "1.5h",
		"5", "5 m", "é", "-1", "/64", "report",
	}
	for _, k := range ctpolicy.Keys {
		syntax := regexp.MustCompile(k.Syntax)
		for _, value := range values {
			parts := []string{value}
			if k.List {
				parts = strings.Split(value, ",")
			}
			for _, part := range parts {
				if k.Set(&ctpolicy.Policy{}, part) == nil && k.Words == nil && !syntax.MatchString(part) {
					t.Errorf("%s takes %q, its syntax %s does not", k.Name, part, k.Syntax)
				}
			}
		}
		if k.Words == nil && (k.Syntax == "" || syntax.MatchString("x y") || syntax.MatchString("é")) {
			t.Errorf("%s: syntax %s takes everything", k.Name, k.Syntax)
		}
	}
}
