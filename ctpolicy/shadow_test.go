package ctpolicy

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

// policy is one with these keys: "port 80, from 10.0.0.0/8;fd00::/8".
func policy(t *testing.T, text string) Policy {
	t.Helper()
	p := Policy{MaxAge: time.Hour}
	for part := range strings.SplitSeq(text, ", ") {
		key, value, _ := strings.Cut(part, " ")
		if err := FindKey(key).Set(&p, strings.ReplaceAll(value, ";", ",")); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestShadow(t *testing.T) {
	for _, c := range []struct {
		policies string // from the first to the one in question
		want     string // the names of those that leave it nothing
	}{
		{"port 80 | port 80", "0"},
		{"port 80 | port 80-81", ""},
		{"port 80 | port 81 | port 80-81", "0 1"},
		{"port 80 | port 80, direction inbound", "0"},
		{"port 80, direction inbound | port 80", ""},
		{"port 80, direction inbound | port 80, direction outbound | port 80, direction forwarded | port 80", "0 1 2"},
		{"port 80, from 10.0.0.0/8 | port 80", ""},
		{"port 80, from 10.0.0.0/8 | port 80, from 10.1.0.0/16", "0"},
		{"port 80, from 10.1.0.0/16 | port 80, from 10.0.0.0/8", ""},
		{"port 80, from 10.0.0.0/8 | port 80, from 10.1.0.0/16;fd00::/8", ""},
		{"port 80, from 10.0.0.0/8 | port 80, to 10.1.0.0/16", ""},
		{"port 80, from 0.0.0.0/0;::/0 | port 80", "0"},
		{"port 80, from 0.0.0.0/0 | port 80", ""},
		{"port 80, from 0.0.0.0/0 | port 80, to 192.0.2.1", "0"},
		{"port 80, except 10.0.0.0/8 | port 80", ""},
		{"port 80, except 10.0.0.0/8 | port 80, except 10.0.0.0/8", "0"},
		{"port 80, except 10.1.0.0/16 | port 80, except 10.0.0.0/8", "0"},
		{"port 80, except 10.0.0.0/8 | port 80, except 10.1.0.0/16", ""},
		{"port 80, except 10.0.0.0/8 | port 80, from 192.0.2.0/24", ""},
		{"port 80, except 10.0.0.0/8 | port 80, from 192.0.2.0/24, to 198.51.100.1", "0"},
		{"port 80, except fd00::/8 | port 80, from 192.0.2.0/24", "0"},
		{"port 80 | port 80, from 10.0.0.0/8, to fd00::1", ""}, // that is its own fault
		{"port 1-65535, mode report | port 22", "0"},
	} {
		var list []Policy
		for i, text := range strings.Split(c.policies, " | ") {
			p := policy(t, text)
			p.Name = string(rune('0' + i))
			list = append(list, p)
		}
		var names []string
		for _, p := range shadowing(list[:len(list)-1], &list[len(list)-1]) {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.policies, got, c.want)
		}
	}
}

func TestShadowIsAnError(t *testing.T) {
	all, some := policy(t, "name all, port 80"), policy(t, "name some, port 80, from 10.0.0.0/8")
	wantErrors(t, Validate([]Policy{some, all}))
	wantErrors(t, Validate([]Policy{all, some}), `policy "some": covers nothing: a connection belongs to the first policy that matches, and "all" before it`)
}

// TestShadowIsCertain looks for a flow of a policy that is said to cover nothing.
func TestShadowIsCertain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 2))
	prefixes := []string{"0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.1", "::/0", "fd00::/8", "fd00:1::/32", "192.0.2.0/24"}
	addresses := []netip.Addr{}
	for _, a := range []string{"10.0.0.1", "10.1.0.1", "10.1.1.1", "192.0.2.1", "8.8.8.8", "fd00::1", "fd00:1::1", "2001:db8::1"} {
		addresses = append(addresses, netip.MustParseAddr(a))
	}
	random := func() Policy {
		p := Policy{MaxAge: time.Hour, Direction: []Direction{Any, Any, Inbound, Outbound, Forwarded}[rnd.IntN(5)]}
		p.Ports = []PortRange{{80, uint16(80 + rnd.IntN(3))}}
		for _, list := range []*Prefixes{&p.From, &p.To, &p.Except} {
			for rnd.IntN(3) == 0 {
				more, _ := ParsePrefixes(prefixes[rnd.IntN(len(prefixes))])
				*list = NewPrefixes(append(*list, more...))
			}
		}
		return p
	}
	local := func(a netip.Addr) bool { return a == addresses[1] || a == addresses[6] }
	found := 0
	for range 5000 {
		list := []Policy{random(), random(), random()}
		if len(shadowing(list[:2], &list[2])) == 0 {
			continue
		}
		found++
		m := NewMatcher(list, local)
		for _, src := range addresses {
			for _, dst := range addresses {
				for port := uint16(80); port < 83 && src.Is4() == dst.Is4(); port++ {
					tuple := conntrack.Tuple{Src: netip.AddrPortFrom(src, 40000), Dst: netip.AddrPortFrom(dst, port)}
					if m.Tuple(tuple, dst) == &list[2] {
						t.Fatalf("%s -> %s port %d belongs to the last of %+v", src, dst, port, list)
					}
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d cases", found)
	}
}
