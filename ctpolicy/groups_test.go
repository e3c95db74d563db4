package ctpolicy

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
)

func TestGroups(t *testing.T) {
	from := Prefixes{netip.MustParsePrefix("10.0.0.0/8")}
	policies := []Policy{
		{Name: "office", Ports: []PortRange{{80, 90}}, From: from},
		{Name: "in", Ports: []PortRange{{85, 100}}, Direction: Inbound},
		{Name: "all", Ports: []PortRange{{80, 200}}},
		{Name: "hidden", Ports: []PortRange{{150, 150}}},
		{Name: "other", Ports: []PortRange{{300, 300}}},
	}
	want := []Group{
		{[]PortRange{{80, 84}}, []int{0, 2}},
		{[]PortRange{{85, 90}}, []int{0, 1, 2}},
		{[]PortRange{{91, 100}}, []int{1, 2}},
		{[]PortRange{{101, 200}}, []int{2}},
		{[]PortRange{{300, 300}}, []int{4}},
	}
	got := Groups(policies)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
	for i, directed := range []bool{false, true, true, false, false} {
		if got[i].Directed(policies) != directed {
			t.Errorf("group %v: directed %v", got[i], !directed)
		}
	}
}

// Whatever the policies are, each port is in the group of the policies that have it, once.
func TestGroupsHoldEveryPortOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var policies []Policy
		for range random.IntN(8) {
			p := Policy{Direction: []Direction{Any, Inbound, Forwarded}[random.IntN(3)]}
			for range 1 + random.IntN(3) {
				first := uint16(1 + random.IntN(40))
				p.Ports = append(p.Ports, PortRange{first, first + uint16(random.IntN(10))})
			}
			policies = append(policies, p)
		}
		seen := map[uint16]bool{}
		for _, g := range Groups(policies) {
			for _, r := range g.Ports {
				for port := r.First; port <= r.Last; port++ {
					if seen[port] || !reflect.DeepEqual(g.Policies, covering(policies, port)) {
						t.Fatalf("port %d of %v is in %v", port, policies, g)
					}
					seen[port] = true
				}
			}
		}
		for port := uint16(1); port < 60; port++ {
			if seen[port] != (len(covering(policies, port)) > 0) {
				t.Fatalf("port %d of %v: in a group %v", port, policies, seen[port])
			}
		}
	}
}
