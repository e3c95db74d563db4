package ctpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// Prefixes are address prefixes, IPv4 and IPv6, sorted and without any that another one contains.
type Prefixes []netip.Prefix

// ParsePrefixes reads "10.0.0.0/8,fd00::/8,192.0.2.1". An address alone is a prefix of full length.
func ParsePrefixes(s string) (Prefixes, error) {
	var list []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		p, err := parsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return NewPrefixes(list), nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	wrong := func() error {
		return fmt.Errorf("%q is not an address or a prefix: write for example 10.0.0.0/8, fd00::/8 or 192.0.2.1", s)
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return netip.Prefix{}, wrong()
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, wrong()
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("prefix %s has bits beyond its length: did you mean %s or %s?", s, p.Masked(), p.Addr())
	}
	return p, nil
}

// NewPrefixes sorts, and drops what another prefix contains.
func NewPrefixes(list []netip.Prefix) Prefixes {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var kept Prefixes
	for _, p := range list {
		if n := len(kept); n == 0 || !kept[n-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// Contain tells whether one of the prefixes holds the address, in logarithmic time.
func (p Prefixes) Contain(a netip.Addr) bool {
	i := sort.Search(len(p), func(i int) bool { return p[i].Addr().Compare(a) > 0 })
	return i > 0 && p[i-1].Contains(a)
}

// Family are those of IPv4, or those of IPv6.
func (p Prefixes) Family(is4 bool) Prefixes {
	var same Prefixes
	for _, prefix := range p {
		if prefix.Addr().Is4() == is4 {
			same = append(same, prefix)
		}
	}
	return same
}

// String is the opposite of ParsePrefixes.
func (p Prefixes) String() string {
	parts := make([]string, len(p))
	for i, prefix := range p {
		parts[i] = prefix.String()
		if prefix.IsSingleIP() {
			parts[i] = prefix.Addr().String()
		}
	}
	return strings.Join(parts, ",")
}
