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
		m := NewMatcher(policies, nowhere)
		ports := m.Ports()
		for port := range 1 << 16 {
			got, want := m.Tuple(portTuple(uint16(port)), netip.Addr{}), search(policies, uint16(port))
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

// nowhere is a host without addresses.
func nowhere(netip.Addr) bool { return false }

// portTuple is a flow to a port.
func portTuple(port uint16) conntrack.Tuple {
	return conntrack.Tuple{Dst: netip.AddrPortFrom(netip.IPv4Unspecified(), port)}
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
	m := NewMatcher(nil, nowhere)
	if m.Tuple(portTuple(389), netip.Addr{}) != nil || m.Ports() != nil || m.Lead() != maxLead {
		t.Errorf("got %v, %v, %v", m.Tuple(portTuple(389), netip.Addr{}), m.Ports(), m.Lead())
	}
}

func TestMatcherLead(t *testing.T) {
	m := NewMatcher([]Policy{ldap(), {Name: "x", Ports: []PortRange{{1, 1}}, MaxAge: day, Idle: 8 * time.Second}}, nowhere)
	if m.Lead() != 4*time.Second {
		t.Errorf("got %v, want 4s", m.Lead())
	}
}

// What counts is the original destination: neither the reply's, nor the client's own port.
func TestMatcherFlow(t *testing.T) {
	m := NewMatcher([]Policy{ldap()}, nowhere)
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

func TestMatcherAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		p    Policy
		want []string // of the flows below
	}{
		"all":           {Policy{}, []string{"a", "b", "c", "d"}},
		"from":          {Policy{From: prefixes("10.0.0.0/24")}, []string{"a", "b"}},
		"from, IPv6":    {Policy{From: prefixes("fd00::/64")}, []string{"d"}},
		"to":            {Policy{To: prefixes("10.0.1.1,fd00::2")}, []string{"a", "c", "d"}},
		"from and to":   {Policy{From: prefixes("10.0.0.0/24"), To: prefixes("10.0.1.1")}, []string{"a"}},
		"except client": {Policy{Except: prefixes("10.0.0.1")}, []string{"b", "c", "d"}},
		"except server": {Policy{Except: prefixes("10.0.1.1,fd00::/16")}, []string{"b"}},
		"from, except":  {Policy{From: prefixes("10.0.0.0/16"), Except: prefixes("10.0.0.2")}, []string{"a", "c"}},
	} {
		c.p.Name, c.p.Ports = "x", []PortRange{{389, 389}}
		m := NewMatcher([]Policy{c.p}, nowhere)
		var got []string
		for _, f := range [][3]string{
			{"a", "10.0.0.1:4000", "10.0.1.1:389"},
			{"b", "10.0.0.2:4000", "10.0.1.2:389"},
			{"c", "10.0.9.1:4000", "10.0.1.1:389"},
			{"d", "[fd00::1]:4000", "[fd00::2]:389"},
		} {
			if m.Flow(entryOf(f[1], f[2])) != nil {
				got = append(got, f[0])
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: covers %v, want %v", name, got, c.want)
		}
	}
}

func prefixes(s string) Prefixes {
	p, err := ParsePrefixes(s)
	if err != nil {
		panic(err)
	}
	return p
}

// here is a host with two addresses.
func here(a netip.Addr) bool {
	return a == netip.MustParseAddr("10.0.0.254") || a == netip.MustParseAddr("127.0.0.1")
}

func TestMatcherDirection(t *testing.T) {
	for name, c := range map[string]struct {
		client, dialled, server string
		want                    Direction
	}{
		"server here":            {"10.0.0.1", "10.0.0.254", "10.0.0.254", Inbound},
		"client here":            {"10.0.0.254", "10.0.0.1", "10.0.0.1", Outbound},
		"both here":              {"127.0.0.1", "127.0.0.1", "127.0.0.1", Inbound},
		"neither":                {"10.0.0.1", "10.1.0.1", "10.1.0.1", Forwarded},
		"published port":         {"10.0.0.1", "10.0.0.254", "172.17.0.2", Forwarded},
		"published, client here": {"10.0.0.254", "10.0.0.254", "172.17.0.2", Outbound},
		"redirected":             {"10.0.0.1", "192.0.2.1", "10.0.0.254", Inbound},
	} {
		e := entryOf(c.client+":4000", c.dialled+":389")
		e.Reply.Src = netip.MustParseAddrPort(c.server + ":389")
		for _, d := range append(slices.Clone(Directions), Any) {
			m := NewMatcher([]Policy{{Name: "x", Ports: []PortRange{{389, 389}}, Direction: d}}, here)
			if got := m.Flow(e) != nil; got != (d == c.want || d == Any) {
				t.Errorf("%s: direction %s covers it: %v", name, d, got)
			}
		}
	}
}

func TestMatcherReversed(t *testing.T) {
	p := ldap()
	p.To = prefixes("10.1.0.0/16")
	p.Ports = append(p.Ports, PortRange{40000, 40000})
	m := NewMatcher([]Policy{p}, here)
	for name, c := range map[string]struct {
		src, dst string
		change   func(*conntrack.Entry)
		want     bool
	}{
		"server first":        {"10.1.0.2:389", "10.0.0.1:45000", nil, true},
		"client first":        {"10.0.0.1:45000", "10.1.0.2:389", nil, false},
		"with a handshake":    {"10.1.0.2:389", "10.0.0.1:45000", func(e *conntrack.Entry) { e.OrigFlags = 0 }, false},
		"translated":          {"10.1.0.2:389", "10.0.0.1:45000", func(e *conntrack.Entry) { e.Status |= conntrack.StatusSrcNAT }, false},
		"both ports covered":  {"10.1.0.2:389", "10.0.0.1:636", nil, false},
		"to a low port":       {"10.1.0.2:389", "10.0.0.1:5432", nil, false},
		"from a high port":    {"10.1.0.2:40000", "10.0.0.1:50000", nil, true},
		"both covered, high":  {"10.1.0.2:389", "10.0.0.1:40000", nil, false},
		"another server":      {"10.2.0.2:389", "10.0.0.1:45000", nil, false},
		"the client is here":  {"10.1.0.2:389", "10.0.0.254:45000", nil, false},
		"port is not covered": {"10.1.0.2:390", "10.0.0.1:45000", nil, false},
	} {
		e := entryOf(c.src, c.dst)
		e.OrigFlags, e.ReplyFlags = conntrack.FlagLiberal|0x02, conntrack.FlagLiberal|0x02
		if c.change != nil {
			c.change(e)
		}
		if got := m.Reversed(e) != nil; got != c.want {
			t.Errorf("%s: %v", name, got)
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
	m := NewMatcher([]Policy{ldap()}, nowhere)
	e := entryOf("10.0.0.1:40000", "10.0.0.2:389")
	b.ReportAllocs()
	for b.Loop() {
		if m.Flow(e) == nil {
			b.Fatal("not covered")
		}
	}
}
