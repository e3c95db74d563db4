package ctpolicy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

// Every port, against a search through the policies.
func TestMatcher(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 1))
	for range 20 {
		policies := randomPolicies(rnd)
		if err := Validate(policies); err != nil {
			t.Fatal(err)
		}
		m := NewMatcher(policies)
		ports := m.Ports()
		for port := range 1 << 16 {
			got, want := m.Port(uint16(port)), search(policies, uint16(port))
			if got != want {
				t.Fatalf("%v: port %d is of %v, want %v", policies, port, got, want)
			}
			if contains(ports, uint16(port)) != (want != nil) {
				t.Fatalf("%v: ports %v are wrong for %d", policies, ports, port)
			}
		}
		if !slices.Equal(ports, joinRanges(slices.Clone(ports))) {
			t.Fatalf("ports %v are not sorted and joined", ports)
		}
	}
}

func search(policies []Policy, port uint16) *Policy {
	for i := range policies {
		if contains(policies[i].Ports, port) {
			return &policies[i]
		}
	}
	return nil
}

// randomPolicies deals out random ranges that don't overlap, among them the first and the last port.
func randomPolicies(rnd *rand.Rand) []Policy {
	policies := make([]Policy, 1+rnd.IntN(5))
	for i := range policies {
		policies[i] = Policy{Name: fmt.Sprintf("p%d", i), MaxAge: time.Hour}
	}
	var ranges []PortRange
	for first := 1; first <= 65535; {
		last := min(65535, first+rnd.IntN([]int{1, 3, 20_000}[rnd.IntN(3)]))
		ranges = append(ranges, PortRange{uint16(first), uint16(last)})
		first = last + 1 + rnd.IntN(3)*rnd.IntN(10_000)
	}
	for i, r := range ranges {
		p := &policies[rnd.IntN(len(policies))]
		if i < len(policies) {
			p = &policies[i] // so that each has a port
		}
		p.Ports = append(p.Ports, r)
	}
	return slices.DeleteFunc(policies, func(p Policy) bool { return p.Ports == nil })
}

func TestMatcherWithoutPolicies(t *testing.T) {
	m := NewMatcher(nil)
	if m.Port(389) != nil || m.Ports() != nil || m.Lead() != maxLead {
		t.Errorf("got %v, %v, %v", m.Port(389), m.Ports(), m.Lead())
	}
}

func TestMatcherLead(t *testing.T) {
	m := NewMatcher([]Policy{ldap(), {Name: "x", Ports: []PortRange{{1, 1}}, MaxAge: day, Idle: 8 * time.Second}})
	if m.Lead() != 4*time.Second {
		t.Errorf("got %v, want 4s", m.Lead())
	}
}

// What counts is the original destination: neither the reply's, nor the client's own port.
func TestMatcherFlow(t *testing.T) {
	m := NewMatcher([]Policy{ldap()})
	for orig, want := range map[[2]string]bool{
		{"10.0.0.1:40000", "10.0.0.2:389"}:     true,
		{"[fd00::1]:40000", "[fd00::2]:636"}:   true,
		{"10.0.0.1:389", "10.0.0.2:40000"}:     false,
		{"10.0.0.1:40000", "10.0.0.2:1389"}:    false,
		{"10.0.0.1:40000", "10.0.0.2:0"}:       false,
		{"10.0.0.1:40000", "192.168.0.1:389"}:  true,
		{"[fd00::1]:636", "[fd00::2]:389"}:     true,
		{"[fd00::1]:40000", "[fd00::2]:65535"}: false,
	} {
		e := entryOf(orig[0], orig[1])
		e.Reply.Src = netip.MustParseAddrPort("10.9.9.9:389") // after DNAT
		if got := m.Flow(e); (got != nil) != want || want && got.Name != "ldap" {
			t.Errorf("%v: got %v", e.Orig, got)
		}
	}
}

func entryOf(src, dst string) *conntrack.Entry {
	orig := conntrack.Tuple{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	return &conntrack.Entry{
		Orig: orig, Reply: conntrack.Tuple{Src: orig.Dst, Dst: orig.Src},
		Status: conntrack.StatusSeenReply | conntrack.StatusAssured | conntrack.StatusConfirmed,
		State:  conntrack.StateEstablished,
	}
}

func BenchmarkMatcherFlow(b *testing.B) {
	m := NewMatcher([]Policy{ldap()})
	e := entryOf("10.0.0.1:40000", "10.0.0.2:389")
	b.ReportAllocs()
	for b.Loop() {
		if m.Flow(e) == nil {
			b.Fatal("not covered")
		}
	}
}
