// Package conntrack reads and changes the kernel's table of tracked TCP flows.
//
// It knows ctnetlink (net/netfilter/nf_conntrack_netlink.c) and nothing of policies.
package conntrack

import (
	"fmt"
	"net/netip"

	"curfew/internal/nl"
)

var (
	// ErrInterrupted means that a dump is incomplete.
	ErrInterrupted = nl.ErrInterrupted

	// ErrMalformed means that a message from the kernel contradicts itself.
	ErrMalformed = nl.ErrMalformed
)

// Tuple is one direction of a TCP flow. IPv4 addresses are Is4, IPv6 addresses have no zone.
type Tuple struct{ Src, Dst netip.AddrPort }

// String is "10.0.0.1:40000 -> 10.0.0.2:389".
func (t Tuple) String() string { return fmt.Sprintf("%s -> %s", t.Src, t.Dst) }

// Entry is what the kernel knows of one TCP flow.
type Entry struct {
	Orig  Tuple // as the first packet came in
	Reply Tuple // as the answer comes in: NAT makes it more than the reverse of Orig

	ID     uint32 // differs between two flows with the same tuples, as a rule
	Status uint32 // StatusExpected and the like

	// Zone is that of the original direction, ReplyZone that of the reply direction. The kernel has one zone for
	// a flow, which holds for both directions or for one: the other is in zone 0 then (struct nf_conntrack_zone).
	Zone, ReplyZone uint16

	// Timeout is in whole seconds until the entry expires. It and State, the flags and the scales are zero while
	// the flow is offloaded to a flowtable: the kernel doesn't send them then.
	Timeout uint32
	State   uint8 // StateNone and the like; see StateName

	OrigFlags, ReplyFlags uint8 // window tracking: IP_CT_TCP_FLAG_*
	OrigScale, ReplyScale uint8 // window scaling, of value only where both flags have 0x01

	Start int64 // birth, in ns since the epoch; 0 when nf_conntrack_timestamp was off at that time
	Label Label
	Mark  uint32
}

// The bits of an entry's status: IPS_* of include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	StatusExpected     uint32 = 1 << 0
	StatusSeenReply    uint32 = 1 << 1
	StatusAssured      uint32 = 1 << 2
	StatusConfirmed    uint32 = 1 << 3
	StatusSrcNAT       uint32 = 1 << 4
	StatusDstNAT       uint32 = 1 << 5
	StatusSeqAdjust    uint32 = 1 << 6
	StatusSrcNATDone   uint32 = 1 << 7
	StatusDstNATDone   uint32 = 1 << 8
	StatusDying        uint32 = 1 << 9
	StatusFixedTimeout uint32 = 1 << 10 // packets don't refresh the timeout
	StatusTemplate     uint32 = 1 << 11
	StatusUntracked    uint32 = 1 << 12
	StatusHelper       uint32 = 1 << 13
	StatusOffload      uint32 = 1 << 14 // in a flowtable
	StatusHWOffload    uint32 = 1 << 15

	StatusNAT        = StatusSrcNAT | StatusDstNAT
	statusTranslated = StatusNAT | StatusSrcNATDone | StatusDstNATDone
)

// FlagLiberal says that windows are not checked in a direction (IP_CT_TCP_FLAG_BE_LIBERAL,
// include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const FlagLiberal uint8 = 0x08

// FlagWindowScale says that the handshake was seen, with that option (IP_CT_TCP_FLAG_WINDOW_SCALE).
const FlagWindowScale uint8 = 0x01

// Tuples are those of the flow's packets as a rule behind destination NAT sees them, also when the entry is not there.
func (e *Entry) Tuples() []Tuple {
	return []Tuple{e.Orig, e.Reply, {Src: e.Orig.Src, Dst: e.Reply.Src}}
}

// HasLabel tells whether connection label bit is set, from 0 to 127.
func (e *Entry) HasLabel(bit int) bool { return e.Label.Has(bit) }

// Reverse turns the entry round: the original direction becomes the reply direction.
func (e *Entry) Reverse() {
	e.Orig, e.Reply = e.Reply, e.Orig
	e.Zone, e.ReplyZone = e.ReplyZone, e.Zone
	e.OrigFlags, e.ReplyFlags = e.ReplyFlags, e.OrigFlags
	e.OrigScale, e.ReplyScale = e.ReplyScale, e.OrigScale
}

func (t Tuple) reverse() Tuple { return Tuple{Src: t.Dst, Dst: t.Src} }
