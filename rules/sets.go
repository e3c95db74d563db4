package rules

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
)

// flowsSet is the fallback's register of a family.
func flowsSet(f *family) string { return "flows" + f.name }

// closedSet holds the ends that the rules have reset, or that have sent a reset, in the last ctpolicy.Window.
func closedSet(f *family) string { return "closed" + f.name }

// wantedSets are all sets that the table should have, in its order, with the elements of those that don't change.
func wantedSets(c *Config) (list []filledSet) {
	for _, set := range fixedSets(c.RegisterSize) {
		list = append(list, filledSet{Set: set})
	}
	for _, w := range ways(c.Policies) {
		list = append(list, w.set())
	}
	for i := range c.Policies {
		list = append(list, policySets(&c.Policies[i], c.RegisterSize)...)
	}
	return list
}

// A filledSet is a set with its elements.
type filledSet struct {
	*nftables.Set
	elements []nftables.SetElement
	text     []string // the elements as nft prints them
}

// policySets are those of one policy. One without elements is left out, unless the rules fill it.
func policySets(p *ctpolicy.Policy, size uint32) (list []filledSet) {
	for _, s := range addressSets(p) {
		for i := range families {
			if set := s.object(&families[i]); len(set.elements) > 0 {
				list = append(list, set)
			}
		}
	}
	for _, l := range sourceLimits(p) {
		for i := range families {
			list = append(list, filledSet{Set: l.set(&families[i], size)})
		}
	}
	return list
}

// fixedSets are those that every table has.
func fixedSets(registerSize uint32) []*nftables.Set {
	list := []*nftables.Set{aliveSet(), beatSet(), adoptSet(), heldSet()}
	for i := range families {
		f := &families[i]
		list = append(list, f.flows(flowsSet(f), registerSize, "the fallback's register: flows and the time left to max_age"))
	}
	for i := range families {
		f := &families[i]
		list = append(list, f.flows(closedSet(f), closedSize, "ends that were reset after their deadline, or have sent a reset"))
	}
	return list
}

// closedSize is enough for 100 flows a second. What does not fit is challenged for longer than needed.
const closedSize = 65536

// flows is a set that rules fill with flows.
func (f *family) flows(name string, size uint32, comment string) *nftables.Set {
	return &nftables.Set{
		Table: table, Name: name, Dynamic: true, HasTimeout: true, Size: size,
		KeyType: nftables.MustConcatSetType(f.address, nftables.TypeInetService, f.address, nftables.TypeInetService),
		Comment: comment,
	}
}

func aliveSet() *nftables.Set {
	return protocolSet(setAlive, "refreshed by the reaper; while tcp is in it the fallback sleeps")
}

func beatSet() *nftables.Set {
	return protocolSet(setBeat, "its element says when the reaper's last sign of life was")
}

func adoptSet() *nftables.Set {
	return protocolSet(setAdopt, "while tcp is in it, forwarded flows that conntrack does not know are picked up")
}

// protocolSet is for one element that comes and goes.
func protocolSet(name, comment string) *nftables.Set {
	return &nftables.Set{Table: table, Name: name, KeyType: nftables.TypeInetProto, HasTimeout: true, Comment: comment}
}

// tcpElement is that element.
func tcpElement(timeout time.Duration, who string) []nftables.SetElement {
	return []nftables.SetElement{{Key: []byte{unix.IPPROTO_TCP}, Timeout: timeout, Comment: who}}
}

func heldSet() *nftables.Set {
	return &nftables.Set{
		Table: table, Name: setHeld, HasTimeout: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetService, nftables.TypeInetService),
		Comment: "source and destination ports of flows whose entry is being replaced",
	}
}

func portMap(name string) *nftables.Set {
	return &nftables.Set{
		Table: table, Name: name, IsMap: true, Interval: true,
		KeyType: nftables.TypeInetService, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.BigEndian,
	}
}

// An addressSet is the prefixes of one key of a policy, in one set for each family.
type addressSet struct {
	policy, key string
	prefixes    ctpolicy.Prefixes
	// wanted says that a flow must be in the set, and not that it must not.
	wanted         bool
	source, server bool // which address must be in it
}

// addressSets are those of a policy. Their order is that of the rules.
func addressSets(p *ctpolicy.Policy) []addressSet {
	return []addressSet{
		{p.Name, "except", p.Except, false, true, true},
		{p.Name, "from", p.From, true, true, false},
		{p.Name, "to", p.To, true, false, true},
	}
}

func (s *addressSet) name(f *family) string { return fmt.Sprintf("%s-%s%s", s.policy, s.key, f.name) }

// offsets are where a packet to the server has the addresses; reversed, one to the client.
func (s *addressSet) offsets(f *family, reversed bool) (list []uint32) {
	client, server := f.source, f.dest
	if reversed {
		client, server = server, client
	}
	if s.source {
		list = append(list, client)
	}
	if s.server {
		list = append(list, server)
	}
	return list
}

// object is the set of a family.
func (s *addressSet) object(f *family) filledSet {
	set := filledSet{Set: &nftables.Set{Table: table, Name: s.name(f), Interval: true, KeyType: f.address}}
	for _, p := range s.prefixes.Family(f.nfproto == nfprotoIPv4) {
		set.elements = append(set.elements, prefixInterval(p)...)
		set.text = append(set.text, ctpolicy.Prefixes{p}.String())
	}
	return set
}

// nfprotoIPv4 is the family of IPv4.
const nfprotoIPv4 = unix.NFPROTO_IPV4

// prefixInterval is a prefix as the kernel keeps it: half open, and without an end at the top.
func prefixInterval(p netip.Prefix) []nftables.SetElement {
	elements := []nftables.SetElement{{Key: p.Addr().AsSlice()}}
	if next := lastOf(p).Next(); next.IsValid() {
		elements = append(elements, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
	}
	return elements
}

// lastOf is the highest address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}
