package ctpolicy

import (
	"slices"
	"time"

	"curfew/ctpolicy/conntrack"
)

// A Matcher answers which policy covers a flow, in constant time. It is read only once made, so it may be shared.
type Matcher struct {
	policies []Policy
	byPort   [1 << 16]uint16 // index into policies plus one
}

// NewMatcher takes policies that Validate found good.
func NewMatcher(policies []Policy) *Matcher {
	m := &Matcher{policies: policies}
	for i, p := range policies {
		for _, r := range p.Ports {
			for port := int(r.First); port <= int(r.Last); port++ {
				m.byPort[port] = uint16(i + 1)
			}
		}
	}
	return m
}

// Policies are those that the matcher was made of; they are not to be changed.
func (m *Matcher) Policies() []Policy { return m.policies }

// Flow is the policy that covers the entry's original tuple, or nil.
func (m *Matcher) Flow(e *conntrack.Entry) *Policy { return m.Port(e.Orig.Dst.Port()) }

// Port is the policy of an original destination port, or nil.
func (m *Matcher) Port(port uint16) *Policy {
	if i := m.byPort[port]; i > 0 {
		return &m.policies[i-1]
	}
	return nil
}

// Ports are the ports of all policies, sorted and joined.
func (m *Matcher) Ports() []PortRange {
	var all []PortRange
	for _, p := range m.policies {
		all = append(all, p.Ports...)
	}
	return joinRanges(all)
}

// Lead is the shortest lead of all policies.
func (m *Matcher) Lead() time.Duration {
	lead := maxLead
	for i := range m.policies {
		lead = min(lead, m.policies[i].Lead())
	}
	return lead
}

// HasIdle tells whether a policy limits pauses.
func (m *Matcher) HasIdle() bool {
	return slices.ContainsFunc(m.policies, func(p Policy) bool { return p.Idle > 0 })
}
