package ctpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
)

// shadowing are the earlier policies that together leave a policy no flow: for each of its ports and directions one of them
// takes all that it covers. There is none where that is not certain; prefixes are not added up.
func shadowing(earlier []Policy, p *Policy) (takers []*Policy) {
	var candidates []*Policy
	for i := range earlier {
		if earlier[i].takesAddresses(p) {
			candidates = append(candidates, &earlier[i])
		}
	}
	for _, r := range segments(append(slices.Clone(earlier), *p)) {
		if !p.hasPort(r.First) {
			continue
		}
		for _, d := range Directions {
			if !p.Direction.Includes(d) {
				continue
			}
			i := slices.IndexFunc(candidates, func(e *Policy) bool { return e.hasPort(r.First) && e.Direction.Includes(d) })
			if i < 0 {
				return nil
			}
			if !slices.Contains(takers, candidates[i]) {
				takers = append(takers, candidates[i])
			}
		}
	}
	return takers
}

func shadowError(takers []*Policy) error {
	names := make([]string, len(takers))
	for i, p := range takers {
		names[i] = fmt.Sprintf("%q", p.Name)
	}
	return fmt.Errorf("covers nothing: a connection belongs to the first policy that matches, and %s before it takes all of these; put the narrower policy first",
		strings.Join(names, " and "))
}

func (p *Policy) hasPort(port uint16) bool {
	return slices.ContainsFunc(p.Ports, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

// takesAddresses tells whether it is certain that the addresses of all of q's flows are addresses of p's. Both addresses of a
// flow are of one family.
func (p *Policy) takesAddresses(q *Policy) bool {
	families := 0
	for _, is4 := range []bool{true, false} {
		if !q.hasFamily(is4) {
			continue
		}
		families++
		from, to := q.From.Family(is4), q.To.Family(is4)
		if !takesAll(p.From, from, is4) || !takesAll(p.To, to, is4) {
			return false
		}
		for _, left := range p.Except.Family(is4) {
			outside := apart(left, from) && apart(left, to)
			if !outside && !q.Except.ContainPrefix(left) {
				return false
			}
		}
	}
	return families > 0
}

// hasFamily tells whether the policy covers flows of IPv4, or of IPv6.
func (p *Policy) hasFamily(is4 bool) bool {
	return (len(p.From) == 0 || len(p.From.Family(is4)) > 0) && (len(p.To) == 0 || len(p.To.Family(is4)) > 0)
}

// takesAll tells whether the first prefixes, where none means all, hold each of one family's.
func takesAll(taken, family Prefixes, is4 bool) bool {
	if len(taken) == 0 {
		return true
	}
	if len(family) == 0 {
		family = Prefixes{netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
		if is4 {
			family = Prefixes{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
		}
	}
	return !slices.ContainsFunc(family, func(prefix netip.Prefix) bool { return !taken.ContainPrefix(prefix) })
}

// apart tells whether a prefix has no address of these; none means all.
func apart(prefix netip.Prefix, list Prefixes) bool {
	return len(list) > 0 && !slices.ContainsFunc(list, prefix.Overlaps)
}

// ContainPrefix tells whether one of the prefixes holds another whole.
func (p Prefixes) ContainPrefix(other netip.Prefix) bool {
	i := sort.Search(len(p), func(i int) bool { return p[i].Addr().Compare(other.Addr()) > 0 })
	return i > 0 && p[i-1].Bits() <= other.Bits() && p[i-1].Contains(other.Addr())
}
