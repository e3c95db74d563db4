package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// What a call that changes the table can answer, beside the kernel's own errors.
var (
	// ErrGone says that the entry does not exist any more, or that its tuple belongs to another flow now.
	ErrGone = errors.New("entry is gone")
	// ErrNAT says that an entry can't be made anew without losing its address translation.
	ErrNAT = errors.New("entry has address translation")
)

// A Table changes single entries of the conntrack table of the namespace in which it was opened. It is not safe for
// concurrent use. Netlink changes an entry by its tuple, so each call first compares identities.
type Table struct{ conn *ct.Conn }

// OpenTable needs CAP_NET_ADMIN from the first change on.
func OpenTable() (*Table, error) {
	conn, err := ct.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack netlink: %w", err)
	}
	return &Table{conn}, nil
}

// Close closes the socket.
func (t *Table) Close() error { return t.conn.Close() }

// Same tells whether both entries are the same flow, and not two that used the same tuple one after the other. The
// kernel's id depends on the address of the entry and on its tuples (nf_ct_get_id).
func (e *Entry) Same(other *Entry) bool {
	return e.ID == other.ID && e.Start == other.Start && e.Orig == other.Orig && e.Zone == other.Zone
}

// Get reads the entry of a tuple, whichever direction the tuple is. It answers ErrGone when there is none.
func (t *Table) Get(tuple Tuple, zone uint16) (Entry, error) {
	flow, err := t.get(tuple, zone)
	if err != nil {
		return Entry{}, err
	}
	return fromFlow(&flow), nil
}

func (t *Table) get(tuple Tuple, zone uint16) (ct.Flow, error) {
	flow, err := t.conn.Get(ct.Flow{TupleOrig: toTuple(tuple), Zone: zone})
	if err != nil {
		return ct.Flow{}, fmt.Errorf("get %s: %w", tuple, gone(err))
	}
	return flow, nil
}

// Again reads the entry as it is now; ErrGone when it is no longer the same flow's.
func (t *Table) Again(e *Entry) (Entry, error) {
	_, now, err := t.again(e)
	return now, err
}

func (t *Table) again(e *Entry) (ct.Flow, Entry, error) {
	flow, err := t.get(e.Orig, e.Zone)
	if err != nil {
		return flow, Entry{}, err
	}
	now := fromFlow(&flow)
	if !now.Same(e) {
		err = fmt.Errorf("get %s: %w", e.Orig, ErrGone)
	}
	return flow, now, err
}

// Pin fixes the entry's timeout: from now on only the clock moves it. A pin can't be changed, only deleted with its
// entry. The status must hold the bits that the entry has already (ctnetlink_change_status: EBUSY), so it is read
// right before, and once more when it changed in between.
//
// A pin also makes the entry give way to a new SYN from its client once it is CLOSE (the test of CLOSE_INIT in
// nf_conntrack_tcp_packet), or a reset by the rule would block the client's port until the pin expires.
//
// The kernel sets the timeout first and the status second (ctnetlink_change_conntrack). A packet that another CPU is
// handling at that moment can still refresh the timeout, and then that is what stays for good: with a packet every 20
// us in both directions about 1 pin in 130 had the wrong timeout. Again tells.
func (t *Table) Pin(e *Entry, seconds uint32) error {
	for try := 0; ; try++ {
		flow, now, err := t.again(e)
		if err != nil {
			return err
		}
		if now.Status&StatusFixedTimeout != 0 {
			return nil
		}
		f := identity(&now)
		f.Timeout = seconds
		f.Status = ct.Status(now.Status | StatusFixedTimeout)
		f.ProtoInfo = protoInfo(&flow, now.State, tcpCloseInit, 0)
		err = gone(t.conn.Update(f))
		if errors.Is(err, unix.EBUSY) && try < 3 {
			continue
		}
		if err != nil {
			return fmt.Errorf("pin %s: %w", e.Orig, err)
		}
		return nil
	}
}

// Create makes an entry for an open connection that conntrack does not know. Windows are not checked, because nobody
// knows them (IP_CT_TCP_FLAG_BE_LIBERAL).
func (t *Table) Create(tuple Tuple, seconds uint32) error {
	e := Entry{
		Orig: tuple, Reply: Tuple{Src: tuple.Dst, Dst: tuple.Src},
		Timeout: seconds, Status: statusOpen, State: StateEstablished,
		OrigFlags: tcpLiberal, ReplyFlags: tcpLiberal,
	}
	return t.create(&e)
}

func (t *Table) create(e *Entry) error {
	f := identity(e)
	f.Timeout = e.Timeout
	f.Status = ct.Status(e.Status)
	f.Mark = e.Mark
	f.ProtoInfo = protoInfo(&ct.Flow{}, e.State, e.OrigFlags, e.ReplyFlags)
	if err := t.conn.Create(f); err != nil {
		return fmt.Errorf("create entry %s: %w", e.Orig, err)
	}
	return nil
}

// MarkClosed tells conntrack that both ends of the flow have closed. A pinned entry goes on answering packets that
// were still on their way, and a new SYN makes the kernel replace it (TCP_CONNTRACK_SYN_SENT in
// nf_conntrack_tcp_packet), so the client may use its port again at once.
func (t *Table) MarkClosed(e *Entry) error {
	return t.setState(e, StateClose, tcpCloseInit, tcpCloseInit)
}

// MarkWaiting is for an entry that is CLOSE although one end may still be open: the reset of that end sets CLOSE again.
// It is TIME_WAIT and not ESTABLISHED, so that a new SYN replaces the entry also meanwhile.
func (t *Table) MarkWaiting(e *Entry) error {
	return t.setState(e, StateTimeWait, 0, 0)
}

// setState sets the TCP state, and flags of both directions in addition to those that are set.
func (t *Table) setState(e *Entry, state, orig, reply uint8) error {
	flow, now, err := t.again(e)
	if err != nil {
		return err
	}
	f := identity(&now)
	f.ProtoInfo = protoInfo(&flow, state, orig, reply)
	if err := t.conn.Update(f); err != nil {
		return fmt.Errorf("set state of %s: %w", e.Orig, gone(err))
	}
	return t.undo(e, state)
}

// undo looks whether a state was set for the right flow. The entry of a closed flow gives way to a SYN at any moment,
// also between the look before a change and the change: then the new flow goes on as an open one.
func (t *Table) undo(e *Entry, state uint8) error {
	flow, now, err := t.again(e)
	if err == nil || now.ID == 0 || now.State != state {
		return err
	}
	f := identity(&now)
	f.ProtoInfo = protoInfo(&flow, StateEstablished, 0, 0)
	return errors.Join(err, t.conn.Update(f))
}

// Delete deletes the entry. An entry that is gone already is no error.
func (t *Table) Delete(e *Entry) error {
	if _, err := t.Again(e); err != nil {
		return ignoreGone(err)
	}
	if err := t.conn.Delete(identity(e)); err != nil {
		return ignoreGone(fmt.Errorf("delete %s: %w", e.Orig, gone(err)))
	}
	return nil
}

// Release replaces a pinned entry by one that is not, which lives for the seconds given unless packets refresh it.
// Its birth is lost.
func (t *Table) Release(e *Entry, seconds uint32) error {
	now, err := t.Again(e)
	if err != nil {
		return ignoreGone(err)
	}
	if now.Status&statusNAT != 0 {
		return fmt.Errorf("release %s: %w", e.Orig, ErrNAT)
	}
	if err := t.Delete(&now); err != nil {
		return err
	}
	now.Timeout = seconds
	now.Status = statusOpen
	now.OrigFlags |= tcpLiberal
	now.ReplyFlags |= tcpLiberal
	err = t.create(&now)
	if errors.Is(err, unix.EEXIST) {
		return nil // a packet was faster, and made an entry of its own
	}
	return err
}

// ClearLabels clears the bits of the entry's label. An entry that was born before labels were in use has no room for
// one (ENOSPC of nf_connlabels_replace), and so nothing to clear.
func (t *Table) ClearLabels(e *Entry, bits ...int) error {
	f := identity(e)
	var zero, mask Label
	for _, bit := range bits {
		mask.Set(bit)
	}
	f.Labels, f.LabelsMask = zero[:], mask[:]
	if err := t.conn.Update(f); err != nil && !errors.Is(err, unix.ENOSPC) {
		return ignoreGone(fmt.Errorf("clear labels of %s: %w", e.Orig, gone(err)))
	}
	return nil
}

// Set sets a bit, from 0 to 127.
func (l *Label) Set(bit int) { l[labelByte(bit)] |= 1 << (bit % 8) }

// What ctnetlink takes for an open connection, and the TCP flags that it can set
// (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	statusOpen   = StatusSeenReply | StatusAssured | StatusConfirmed
	statusNAT    = StatusSrcNAT | StatusDstNAT
	tcpCloseInit = 0x04
	tcpLiberal   = 0x08
)

// identity names an entry to the kernel: both tuples (with one, ti-mo sends the wrong family for IPv6) and the zone.
func identity(e *Entry) ct.Flow {
	return ct.Flow{TupleOrig: toTuple(e.Orig), TupleReply: toTuple(e.Reply), Zone: e.Zone}
}

// protoInfo sets the state and the given flags, and leaves the other flags: each value is flags and mask (struct
// nf_ct_tcp_flags). The window scales go back as they are in the flow, because ti-mo always sends some.
func protoInfo(flow *ct.Flow, state, orig, reply uint8) ct.ProtoInfo {
	both := func(flags uint8) uint16 { return uint16(flags)<<8 | uint16(flags) }
	tcp := &ct.ProtoInfoTCP{State: state, OriginalFlags: both(orig), ReplyFlags: both(reply)}
	if was := flow.ProtoInfo.TCP; was != nil {
		tcp.OriginalWindowScale, tcp.ReplyWindowScale = was.OriginalWindowScale, was.ReplyWindowScale
	}
	return ct.ProtoInfo{TCP: tcp}
}

func toTuple(t Tuple) ct.Tuple {
	return ct.Tuple{
		IP:    ct.IPTuple{SourceAddress: t.Src.Addr(), DestinationAddress: t.Dst.Addr()},
		Proto: ct.ProtoTuple{Protocol: unix.IPPROTO_TCP, SourcePort: t.Src.Port(), DestinationPort: t.Dst.Port()},
	}
}

func fromTuple(t *ct.Tuple) Tuple {
	return Tuple{
		Src: netip.AddrPortFrom(t.IP.SourceAddress, t.Proto.SourcePort),
		Dst: netip.AddrPortFrom(t.IP.DestinationAddress, t.Proto.DestinationPort),
	}
}

func fromFlow(f *ct.Flow) Entry {
	e := Entry{
		Orig: fromTuple(&f.TupleOrig), Reply: fromTuple(&f.TupleReply),
		ID: f.ID, Zone: f.Zone, Status: uint32(f.Status), Timeout: f.Timeout, Mark: f.Mark,
	}
	if e.Zone == 0 {
		e.Zone = f.TupleOrig.Zone // the flow has a zone in one direction only
	}
	if !f.Timestamp.Start.IsZero() {
		e.Start = f.Timestamp.Start.UnixNano()
	}
	if tcp := f.ProtoInfo.TCP; tcp != nil {
		e.State = tcp.State
		// The flags, then a mask: struct nf_ct_tcp_flags as a big-endian number.
		e.OrigFlags, e.ReplyFlags = uint8(tcp.OriginalFlags>>8), uint8(tcp.ReplyFlags>>8)
	}
	copy(e.Label[:], f.Labels)
	return e
}

func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (%w)", ErrGone, err)
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}
