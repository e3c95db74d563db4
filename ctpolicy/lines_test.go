package ctpolicy

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestLinesReadBack(t *testing.T) {
	var many Prefixes
	for i := range 300 {
		many = append(many, netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::/48", i)))
	}
	var ports []PortRange
	for port := uint16(1); port < 600; port += 3 {
		ports = append(ports, PortRange{port, port + 1})
	}
	policies := []Policy{
		{
			Name: strings.Repeat("n", maxName), Ports: ports, MaxAge: 365 * day, Idle: time.Hour + 61*time.Second, Jitter: 100, Grace: day, MaxPerSource: maxCount,
			NewPerSource: SourceRate{maxCount, day, maxCount}, SourcePrefix6: 128, Refuse: Drop, Mode: Report, Rate: maxCount, Direction: Forwarded,
			From: NewPrefixes(many), To: NewPrefixes(many[:1]), Except: NewPrefixes(many[5:90]),
		},
		{Name: "a", Ports: []PortRange{{1, 65535}}, Idle: time.Second},
		{Name: "a-b", Ports: []PortRange{{443, 443}}, MaxAge: time.Minute},
	}
	var lines []string
	for i := range policies {
		lines = append(lines, policies[i].Lines(120)...)
	}
	for _, line := range lines {
		if len(line) > 120 || strings.HasSuffix(line, ": ") {
			t.Errorf("line %q has %d bytes", line, len(line))
		}
	}
	got, err := ParseLines(lines)
	if err != nil || !reflect.DeepEqual(got, policies) {
		t.Errorf("%v\n%+v", err, got)
	}
}

func TestParseLinesRefuses(t *testing.T) {
	for _, line := range []string{"", "ldap", "ldap: ", "ldap: max_agee 1h", "ldap: max_age", "ldap: port 0"} {
		if _, err := ParseLines([]string{line}); err == nil {
			t.Errorf("%q: no error", line)
		}
	}
}

func FuzzParseLines(f *testing.F) {
	f.Add("ldap: port 389,636, max_age 1h")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = ParseLines(strings.Split(text, "\n")) })
}
