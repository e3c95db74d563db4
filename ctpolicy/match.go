package ctpolicy

import (
	"net/netip"
	"slices"
	"time"

	"curfew/ctpolicy/conntrack"
)

// A Matcher answers which policy covers a flow: the first that matches. It is read only once made, so it may be shared if
// local may.
type Matcher struct {
	policies []Policy
	slots    []int
	groups   []Group
	byPort   [1 << 16]uint16 // index into groups plus one
	local    func(netip.Addr) bool
}

// NewMatcher takes policies that Validate found good. local tells whether an address is this host's own.
func NewMatcher(policies []Policy, local func(netip.Addr) bool) *Matcher {
	m := &Matcher{policies: policies, groups: Groups(policies), local: local}
	m.slots, _ = Slots(policies)
	for i := range m.groups {
		for _, r := range m.groups[i].Ports {
			for port := int(r.First); port <= int(r.Last); port++ {
				m.byPort[port] = uint16(i + 1)
			}
		}
	}
	return m
}

// Policies are those that the matcher was made of; they are not to be changed.
func (m *Matcher) Policies() []Policy { return m.policies }

// Flow is the policy that covers the entry, or nil.
func (m *Matcher) Flow(e *conntrack.Entry) *Policy { return m.Tuple(e.Orig, e.Reply.Src.Addr()) }

// Tuple is the policy that covers a flow with this original tuple, or nil. The server's own address is another than the
// tuple's destination where that is translated.
func (m *Matcher) Tuple(t conntrack.Tuple, server netip.Addr) *Policy {
	for _, i := range m.candidates(t.Dst.Port()) {
		p := &m.policies[i]
		if p.coversAddresses(t.Src.Addr(), t.Dst.Addr()) &&
			(p.Direction == Any || p.Direction == m.Direction(t.Src.Addr(), server)) {
			return p
		}
	}
	return nil
}

// Labels are the bits that the rules give to a flow when they first see it: that it is covered, the slots of policies whose
// addresses match, and its direction where that matters. A flow that no policy covers has none.
func (m *Matcher) Labels(e *conntrack.Entry) (label conntrack.Label) {
	p := m.Flow(e)
	if p == nil {
		return label
	}
	for _, i := range m.candidates(e.Orig.Dst.Port()) {
		if m.slots[i] >= 0 && m.policies[i].coversAddresses(e.Orig.Src.Addr(), e.Orig.Dst.Addr()) {
			label.Set(LabelMatched + m.slots[i])
		}
	}
	if m.groups[m.byPort[e.Orig.Dst.Port()]-1].Directed(m.policies) {
		label.Set(DirectionLabel(m.Direction(e.Orig.Src.Addr(), e.Reply.Src.Addr())))
	}
	label.Set(LabelCovered)
	return label
}

// candidates are the policies that cover flows to a port, by index.
func (m *Matcher) candidates(port uint16) []int {
	if i := m.byPort[port]; i > 0 {
		return m.groups[i-1].Policies
	}
	return nil
}

func (p *Policy) coversAddresses(src, dst netip.Addr) bool {
	return (len(p.From) == 0 || p.From.Contain(src)) && (len(p.To) == 0 || p.To.Contain(dst)) &&
		!p.Except.Contain(src) && !p.Except.Contain(dst)
}

// Direction is that of a flow between a client and a server, by their own addresses.
func (m *Matcher) Direction(client, server netip.Addr) Direction {
	switch {
	case m.local(server):
		return Inbound
	case m.local(client):
		return Outbound
	}
	return Forwarded
}

// ClientPort is the lowest port that is taken for a client's, where only ports can tell which end is the client
// (net.ipv4.ip_local_port_range).
const ClientPort = 32768

// Reversed is the policy that covers a forwarded flow which conntrack has the wrong way round, or nil: it picked the flow
// up in mid-flow, from a packet of the server. Then it checks no windows (tcp_new of nf_conntrack_proto_tcp.c sets
// BE_LIBERAL), as it does for what a flowtable gave up; but of that it knows the window scale. Only the ports tell which end is which, so that of the client must look like one. Flows with address
// translation can't be turned.
func (m *Matcher) Reversed(e *conntrack.Entry) *Policy {
	if e.OrigFlags&e.ReplyFlags&conntrack.FlagLiberal == 0 || (e.OrigFlags|e.ReplyFlags)&conntrack.FlagWindowScale != 0 || e.Status&conntrack.StatusNAT != 0 ||
		m.candidates(e.Orig.Src.Port()) == nil || m.candidates(e.Orig.Dst.Port()) != nil || e.Orig.Dst.Port() < ClientPort {
		return nil
	}
	if m.Direction(e.Orig.Src.Addr(), e.Orig.Dst.Addr()) != Forwarded {
		return nil
	}
	return m.Tuple(e.Reply, e.Orig.Src.Addr())
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

// HasIdle tells whether a policy limits pauses, or waits for one.
func (m *Matcher) HasIdle() bool {
	return slices.ContainsFunc(m.policies, func(p Policy) bool { return p.Idle > 0 || p.Grace > 0 })
}
