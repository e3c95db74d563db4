package ctpolicy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParsePrefixes(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8":                       "10.0.0.0/8",
		"192.0.2.1":                        "192.0.2.1",
		"192.0.2.1/32, ::1/128":            "192.0.2.1,::1",
		"fd00::/8,10.0.0.0/8":              "10.0.0.0/8,fd00::/8",
		"10.0.0.0/8,10.1.0.0/16,10.0.0.0":  "10.0.0.0/8",
		"0.0.0.0/0,10.0.0.1,fe80::/10,::1": "0.0.0.0/0,::1,fe80::/10",
	} {
		if got, err := ParsePrefixes(text); err != nil || got.String() != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"":                  "is not an address or a prefix",
		"10.0.0.0/8,":       "is not an address or a prefix",
		"10.0.0.0/33":       "is not an address or a prefix",
		"10.0.0":            "is not an address or a prefix",
		"localhost":         "is not an address or a prefix",
		"fe80::1%eth0":      "is not an address or a prefix",
		"::ffff:10.0.0.1":   "is not an address or a prefix",
		"::ffff:0.0.0.0/96": "is not an address or a prefix",
		"10.0.0.1/8":        "did you mean 10.0.0.0/8 or 10.0.0.1?",
	} {
		if got, err := ParsePrefixes(text); err == nil || got != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
}

// Contain and NewPrefixes, against a look at every prefix.
func TestPrefixesContain(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 1))
	for range 500 {
		var list []netip.Prefix
		for range rnd.IntN(12) {
			list = append(list, netip.PrefixFrom(randomAddr(rnd), rnd.IntN(33)).Masked())
		}
		p := NewPrefixes(list)
		for i := range p {
			for j := range p {
				if i != j && p[i].Overlaps(p[j]) {
					t.Fatalf("%v overlap", p)
				}
			}
		}
		for range 200 {
			a := randomAddr(rnd)
			want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
			if p.Contain(a) != want {
				t.Fatalf("%v of %v: %s is in it: %v", p, list, a, !want)
			}
		}
	}
}

// randomAddr is one of few, so that prefixes hit.
func randomAddr(rnd *rand.Rand) netip.Addr {
	if rnd.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{byte(rnd.IntN(3)), byte(rnd.IntN(3)), byte(rnd.IntN(3)), byte(rnd.IntN(256))})
	}
	return netip.AddrFrom16([16]byte{0: byte(rnd.IntN(3)), 3: byte(rnd.IntN(3)), 15: byte(rnd.IntN(256))})
}

func TestParseDirection(t *testing.T) {
	for _, d := range append(slices.Clone(Directions), Any) {
		if got, err := ParseDirection(d.String()); err != nil || got != d {
			t.Errorf("%q: got %q, %v", d, got, err)
		}
	}
	for _, text := range []string{"", "in", "Inbound", "both"} {
		if got, err := ParseDirection(text); err == nil {
			t.Errorf("%q: got %q", text, got)
		}
	}
}
