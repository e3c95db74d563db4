package reaper

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/challenge"
	"curfew/reaper/sockdiag"
)

const bootID = "0badcafe"

var (
	hereAddr   = netip.MustParseAddr("10.0.0.1")
	clientAddr = netip.MustParseAddr("10.0.0.2")
	serverAddr = netip.MustParseAddr("10.0.0.3")
)

// A kernel is conntrack, the pinned rule, this host's sockets and the remote ends, in virtual time. It knows the true
// age of every connection, and fails the test when one is touched that is not covered or whose time is not up.
type kernel struct {
	pinRaces int // pins that get the timeout of a packet instead of theirs
	tb       testing.TB
	boot     ctpolicy.Instant
	offset   int64 // of the wall clock to the boot clock
	policies *ctpolicy.Matcher
	defaults ctpolicy.Timeouts

	entries   []*entry
	byTuple   map[zoned]*entry                     // both directions
	closed    map[conntrack.Tuple]ctpolicy.Instant // from one end to the other, by their own addresses
	held      map[conntrack.Tuple]ctpolicy.Instant // until when
	conns     []*conn
	listeners []netip.AddrPort
	cookies   uint64
	events    []event // sorted by time
	notes     []string
	beats     int

	noTimestamps bool // nf_conntrack_timestamp=0
	noRules      bool // new entries get no timeout object
	cost         time.Duration
	hook         func(call string)       // before each call
	fault        func(call string) error // what the call answers instead
	atOnce       int                     // calls since the time moved
	sent         func(to string)         // a challenge
	unsendable   netip.AddrPort          // the end to which sending fails
	sendFault    error                   // with this error
	unknown      netip.AddrPort          // the end that the rules can't tell of
	between      func()                  // after Renew has deleted an entry, and before it makes the new one
	changes      []string                // calls that changed something
	calling      bool                    // a call of the reaper is under way
	killed       bool                    // and its process has been killed
}

type zoned struct {
	conntrack.Tuple
	zone uint16
}

type event struct {
	at ctpolicy.Instant
	do func()
}

// An entry is one flow in conntrack.
type entry struct {
	conntrack.Entry
	expires ctpolicy.Instant
	base    time.Duration // to which a packet sets the timeout
	conn    *conn
}

// A conn is what conntrack and the sockets only show a part of.
type conn struct {
	k              *kernel
	tuple, reply   conntrack.Tuple
	client, server *tcp
	policy         *ctpolicy.Policy
	born, talked   ctpolicy.Instant
	wasDue         ctpolicy.Instant // when it ended a pause that was too long
	ended          ctpolicy.Instant // when the last end closed
	untracked      bool             // its packets make no entries
	bypass         ctpolicy.Instant // until when a flowtable forwards it
	mayEnd         bool             // at any time
}

// A tcp is one end.
type tcp struct {
	local, remote netip.AddrPort
	here          bool
	state         sockdiag.State
	cookie        uint64
	sent, got     ctpolicy.Instant
	device        uint32 // that it is bound to
	deaf          int    // leaves that many challenges unanswered; <0: all
	answered      ctpolicy.Instant
}

func isHere(a netip.Addr) bool { return a == hereAddr }

func newKernel(tb testing.TB, policies ...ctpolicy.Policy) *kernel {
	if err := ctpolicy.Validate(policies); err != nil {
		tb.Fatal(err)
	}
	k := &kernel{
		tb: tb, boot: ctpolicy.Instant(100 * time.Hour), offset: 1_700_000_000_000_000_000,
		policies: ctpolicy.NewMatcher(policies, isHere), byTuple: map[zoned]*entry{},
		closed: map[conntrack.Tuple]ctpolicy.Instant{}, held: map[conntrack.Tuple]ctpolicy.Instant{},
	}
	for i := range k.defaults {
		k.defaults[i] = 120
	}
	k.defaults[conntrack.TimeoutEstablished] = 432000
	k.defaults[conntrack.TimeoutRetrans] = 300
	k.defaults[conntrack.TimeoutUnack] = 300
	for _, p := range policies {
		k.listeners = append(k.listeners, netip.AddrPortFrom(netip.IPv4Unspecified(), p.Ports[0].First))
	}
	_ = k.Note(k.Now().Note(bootID)) // apply keeps the first note
	return k
}

// Time.

func (k *kernel) Now() ctpolicy.Reading {
	return ctpolicy.Reading{Boot: k.boot, Wall: int64(k.boot) + k.offset}
}

func (k *kernel) after(d time.Duration, do func()) {
	e := event{k.boot.Add(d), do}
	i, _ := slices.BinarySearchFunc(k.events, e, func(a, b event) int { return cmp.Compare(a.at, b.at+1) })
	k.events = slices.Insert(k.events, i, e)
}

func (k *kernel) elapse(until ctpolicy.Instant) {
	for len(k.events) > 0 && k.events[0].at <= until {
		e := k.events[0]
		k.events = k.events[1:]
		k.setTime(e.at)
		e.do()
	}
	k.setTime(until)
}

func (k *kernel) setTime(at ctpolicy.Instant) {
	if at > k.boot {
		k.boot, k.atOnce = at, 0
	}
}

// call begins every call of the reaper.
func (k *kernel) call(name string) error {
	k.calling = true
	k.elapse(k.boot.Add(k.cost))
	k.calling = false
	if k.killed {
		k.killed = false
		panic(errKilled)
	}
	if k.atOnce++; k.atOnce > 20000 {
		k.tb.Fatalf("the reaper spins: %s is call number %d at the same time", name, k.atOnce)
	}
	if k.hook != nil {
		k.hook(name)
	}
	if k.fault == nil {
		return nil
	}
	return k.fault(name)
}

// Connections.

func addrPort(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// A place says which ends are on this host.
type place struct {
	name           string
	client, server netip.Addr
}

var (
	bothHere   = place{"both ends here", hereAddr, hereAddr}
	serverHere = place{"server here", clientAddr, hereAddr}
	clientHere = place{"client here", hereAddr, serverAddr}
	forwarded  = place{"forwarded", clientAddr, serverAddr}
	places     = []place{bothHere, serverHere, clientHere, forwarded}
)

// open completes a handshake.
func (k *kernel) open(p place, clientPort, serverPort uint16) *conn {
	tuple := conntrack.Tuple{Src: addrPort(p.client, clientPort), Dst: addrPort(p.server, serverPort)}
	return k.openVia(tuple, reversed(tuple))
}

// openVia is open through NAT.
func (k *kernel) openVia(tuple, reply conntrack.Tuple) *conn {
	c := k.prepare(tuple, reply)
	if old := k.find(tuple); old != nil {
		k.remove(old)
	}
	k.newEntry(c, tuple, reply)
	return c
}

func (k *kernel) prepare(tuple, reply conntrack.Tuple) *conn {
	c := &conn{k: k, tuple: tuple, reply: reply, policy: k.policies.Tuple(tuple, reply.Src.Addr()), born: k.boot, talked: k.boot}
	c.client = k.end(tuple.Src, tuple.Dst)
	c.server = k.end(reply.Src, reply.Dst)
	for _, old := range k.conns {
		for _, e := range []*tcp{old.client, old.server} {
			if old.tuple == tuple {
				e.state = sockdiag.Close // TIME_WAIT gives way
			}
		}
	}
	k.conns = append(k.conns, c)
	return c
}

func (k *kernel) end(local, remote netip.AddrPort) *tcp {
	k.cookies++
	return &tcp{
		local: local, remote: remote, here: local.Addr() == hereAddr, state: sockdiag.Established, cookie: k.cookies,
		sent: k.boot, got: k.boot,
	}
}

func (k *kernel) newEntry(c *conn, orig, reply conntrack.Tuple) *entry {
	e := &entry{conn: c, base: time.Duration(k.defaults[conntrack.TimeoutEstablished]) * time.Second}
	e.Orig, e.Reply = orig, reply
	e.ID = uint32(orig.Src.Port())<<16 | uint32(orig.Dst.Port()) // the next flow on this tuple may get the same
	e.Status = conntrack.StatusSeenReply | conntrack.StatusAssured | conntrack.StatusConfirmed
	e.State = conntrack.StateEstablished
	if !k.noTimestamps {
		e.Start = k.Now().Wall
	}
	if p := k.policies.Flow(&e.Entry); p != nil && !k.noRules {
		e.Label.Set(ctpolicy.LabelTracked)
		e.base = p.EntryTimeout()
	}
	e.expires = k.boot.Add(e.base)
	k.entries = append(k.entries, e)
	k.byTuple[zoned{orig, 0}], k.byTuple[zoned{reply, 0}] = e, e
	return e
}

func reversed(t conntrack.Tuple) conntrack.Tuple { return conntrack.Tuple{Src: t.Dst, Dst: t.Src} }

func (c *conn) open() bool        { return c.client.open() || c.server.open() }
func (c *conn) established() bool { return c.client.open() && c.server.open() }

func (e *tcp) open() bool {
	switch e.state {
	case sockdiag.Close, sockdiag.TimeWait:
		return false
	}
	return true
}

func (c *conn) other(e *tcp) *tcp {
	if e == c.client {
		return c.server
	}
	return c.client
}

func (c *conn) String() string { return c.tuple.String() }

// due tells whether the time is up.
func (c *conn) due() bool {
	p, now := c.policy, c.k.boot
	if c.wasDue != 0 && now.Sub(c.wasDue) <= 8*c.k.cost {
		return true // it spoke while the reaper went from the look to the deed
	}
	return c.mayEnd || p != nil &&
		(p.MaxAge > 0 && now >= c.born.Add(p.MaxAge) || p.Idle > 0 && now >= c.talked.Add(p.Idle))
}

// end closes one end, by force when it is not its own wish.
func (c *conn) end(e *tcp, force string) {
	if !e.open() {
		return
	}
	if force != "" && !c.due() {
		c.k.tb.Errorf("%s: ended by %s at age %s after a pause of %s: too early", c, force, c.k.boot.Sub(c.born), c.k.boot.Sub(c.talked))
	}
	e.state = sockdiag.Close
	if !c.open() {
		c.ended = c.k.boot
	}
}

type flag int

const (
	data flag = iota
	fin
	rst
)

// send takes a packet through conntrack and the rule to the other end.
func (c *conn) send(from *tcp, flag flag, force string) {
	k, to := c.k, c.other(from)
	if p := c.policy; p != nil && p.Idle > 0 && k.boot >= c.talked.Add(p.Idle) {
		c.wasDue = k.boot
	}
	if !from.open() && flag != rst {
		return
	}
	if flag != data {
		k.onload(c)
	}
	if k.holds(c) {
		if flag != rst {
			k.after(300*time.Millisecond, func() { c.send(from, flag, force) })
		}
		return
	}
	e := k.track(c, from, flag)
	if k.ruled(c, e, from) && flag != rst {
		e.State = conntrack.StateClose
		c.end(from, "the rule")
		return
	}
	switch flag {
	case data:
		from.sent, c.talked = k.boot, k.boot
		e.refresh(k, e.stateOr(conntrack.StateEstablished))
		if !to.open() {
			c.send(to, rst, "")
			return
		}
		to.got = k.boot
	case fin:
		from.sent, c.talked = k.boot, k.boot
		if !to.open() {
			c.send(to, rst, "")
			return
		}
		if from.state == sockdiag.Established {
			from.state, to.state, to.got = sockdiag.FinWait2, sockdiag.CloseWait, k.boot
			e.refresh(k, conntrack.StateFinWait)
			return
		}
		from.state, to.state, c.ended = sockdiag.Close, sockdiag.TimeWait, k.boot
		e.refresh(k, conntrack.StateTimeWait)
	case rst:
		c.end(from, force)
		c.end(to, force)
		e.refresh(k, conntrack.StateClose)
	}
}

// offload gives a connection to a flowtable, which bypasses the rules, until it gives it up after a pause.
func (k *kernel) offload(c *conn) {
	e := k.find(c.tuple)
	e.Status |= conntrack.StatusOffload
	e.expires, c.bypass = k.boot.Add(24*time.Hour), k.boot.Add(24*time.Hour)
	var look func()
	look = func() {
		if k.boot.Sub(c.talked) >= flowtablePause {
			k.onload(c)
		} else if k.boot < c.bypass {
			k.after(time.Second, look)
		}
	}
	k.after(time.Second, look)
}

// flowtablePause is nf_flowtable_tcp_timeout.
const flowtablePause = 30 * time.Second

// onload takes it back (flow_offload_fixup_ct).
func (k *kernel) onload(c *conn) {
	if k.boot >= c.bypass {
		return
	}
	c.bypass = k.boot
	if e := k.find(c.tuple); e != nil && ctpolicy.Offloaded(&e.Entry) {
		e.Status &^= conntrack.StatusOffload
		e.expires = k.boot.Add(time.Duration(k.defaults[conntrack.TimeoutEstablished])*time.Second - flowtablePause)
	}
}

// track finds the entry of a packet. One is made for the middle of a connection too (nf_conntrack_tcp_loose).
func (k *kernel) track(c *conn, from *tcp, flag flag) *entry {
	tuple, reply := c.tuple, c.reply
	if from == c.server {
		tuple, reply = reply, tuple
	}
	e := k.find(tuple)
	if e == nil && !c.untracked && flag != rst {
		e = k.newEntry(c, tuple, reply)
		e.OrigFlags, e.ReplyFlags = conntrack.FlagLiberal, conntrack.FlagLiberal
	}
	if e != nil && e.conn != c || k.boot < c.bypass {
		return nil
	}
	return e
}

// holds tells whether the rules drop what the connection sends now.
func (k *kernel) holds(c *conn) bool {
	return k.boot < k.held[c.tuple] && k.find(c.tuple) == nil && k.boot >= c.bypass
}

// ruled tells whether the rule resets the sender of a packet, or lets its reset through; it remembers both.
func (k *kernel) ruled(c *conn, e *entry, from *tcp) bool {
	if e == nil || k.policies.Flow(&e.Entry) == nil || !ctpolicy.Pinned(&e.Entry) || e.expires.Sub(k.boot) > ctpolicy.Window {
		return false
	}
	k.closed[c.way(from)] = k.boot
	return true
}

// way is from one end to the other, by the addresses that it knows.
func (c *conn) way(from *tcp) conntrack.Tuple {
	return conntrack.Tuple{Src: from.local, Dst: from.remote}
}

func (e *entry) stateOr(state uint8) uint8 {
	if e == nil || e.State == conntrack.StateClose {
		return state
	}
	return e.State
}

func (e *entry) refresh(k *kernel, state uint8) {
	if e == nil {
		return
	}
	e.State = state
	timeout := e.base
	switch {
	case state == conntrack.StateClose:
		timeout = time.Second
	case state == conntrack.StateTimeWait || !e.HasLabel(ctpolicy.LabelTracked):
		timeout = time.Duration(k.defaults[conntrack.TimeoutOf(state)]) * time.Second
	}
	if !ctpolicy.Pinned(&e.Entry) {
		e.expires = k.boot.Add(timeout)
	}
}

// talk sends packets from both ends in turn, while both are open.
func (c *conn) talk(every, duration time.Duration) {
	until := c.k.boot.Add(duration)
	turn := c.client
	var next func()
	next = func() {
		if c.k.boot > until || !c.established() {
			return
		}
		c.send(turn, data, "")
		turn = c.other(turn)
		c.k.after(every, next)
	}
	c.k.after(every, next)
}

// shut closes the connection properly.
func (c *conn) shut() {
	c.send(c.client, fin, "")
	c.send(c.server, fin, "")
}

// The table of entries.

func (k *kernel) find(t conntrack.Tuple) *entry { return k.findIn(t, 0) }

func (k *kernel) findIn(t conntrack.Tuple, zone uint16) *entry {
	e := k.byTuple[zoned{t, zone}]
	if e != nil && e.expires <= k.boot {
		k.remove(e)
		return nil
	}
	return e
}

func (k *kernel) remove(e *entry) {
	for _, t := range []conntrack.Tuple{e.Orig, e.Reply} {
		if z := (zoned{t, e.Zone}); k.byTuple[z] == e {
			delete(k.byTuple, z)
		}
	}
	k.entries = slices.DeleteFunc(k.entries, func(x *entry) bool { return x == e })
}

// flush is conntrack -F.
func (k *kernel) flush() {
	k.entries = nil
	clear(k.byTuple)
}

func (k *kernel) read(e *entry) conntrack.Entry {
	now := e.Entry
	now.Timeout = uint32(e.expires.Sub(k.boot) / time.Second)
	if ctpolicy.Offloaded(&now) {
		now.Timeout, now.State, now.OrigFlags, now.ReplyFlags = 0, 0, 0, 0
	}
	return now
}

// Dump copies some entries at a time, as the kernel does, so that those given out may be a little old.
func (k *kernel) Dump(f conntrack.Filter, fn func(*conntrack.Entry) error) error {
	fault := k.call("Dump")
	all := slices.Clone(k.entries)
	if fault != nil {
		all = all[:len(all)/2] // cut short
	}
	for part := range slices.Chunk(all, 100) {
		var read []conntrack.Entry
		for _, e := range part {
			if k.findIn(e.Orig, e.Zone) == e && (e.Status^f.Status)&f.StatusMask == 0 {
				read = append(read, k.read(e))
			}
		}
		for i := range read {
			if err := fn(&read[i]); err != nil {
				return err
			}
		}
	}
	return fault
}

func (k *kernel) Get(t conntrack.Tuple, zone uint16) (conntrack.Entry, error) {
	if err := k.call("Get"); err != nil {
		return conntrack.Entry{}, err
	}
	return k.get(t, zone)
}

func (k *kernel) get(t conntrack.Tuple, zone uint16) (conntrack.Entry, error) {
	e := k.findIn(t, zone)
	if e == nil {
		return conntrack.Entry{}, fmt.Errorf("get %s: %w", t, conntrack.ErrGone)
	}
	return k.read(e), nil
}

func (k *kernel) Again(e *conntrack.Entry) (conntrack.Entry, error) {
	if err := k.call("Again"); err != nil {
		return conntrack.Entry{}, err
	}
	now, err := k.get(e.Orig, e.Zone)
	if err == nil && !now.Same(e) {
		err = fmt.Errorf("get %s: %w", e.Orig, conntrack.ErrGone)
	}
	return now, err
}

// change finds the entry that a call wants to change.
func (k *kernel) change(name string, e *conntrack.Entry) (*entry, error) {
	if err := k.call(name); err != nil {
		return nil, err
	}
	now := k.findIn(e.Orig, e.Zone)
	if now == nil || !now.Same(e) {
		return nil, fmt.Errorf("%s %s: %w", name, e.Orig, conntrack.ErrGone)
	}
	turned := name == "Renew" && k.policies.Reversed(&now.Entry) != nil
	if k.policies.Flow(&now.Entry) == nil && name != "Delete" && !turned {
		k.tb.Errorf("%s of %s, which no policy covers", name, e.Orig)
	}
	k.changes = append(k.changes, name)
	return now, nil
}

func (k *kernel) Pin(old *conntrack.Entry, seconds uint32) error {
	e, err := k.change("Pin", old)
	if err != nil || ctpolicy.Pinned(&e.Entry) {
		return err
	}
	if ctpolicy.Offloaded(&e.Entry) {
		k.tb.Errorf("%s is pinned in a flowtable", e.conn)
	}
	c := e.conn
	c.mayEnd = c.mayEnd || c.due()
	if k.pinRaces > 0 {
		// A packet on another CPU came between the timeout and the status.
		k.pinRaces--
		e.expires = k.boot.Add(e.base)
		e.Status |= conntrack.StatusFixedTimeout
		return nil
	}
	e.expires = k.boot.Add(time.Duration(seconds) * time.Second)
	e.Status |= conntrack.StatusFixedTimeout
	k.notEarly(e)
	return nil
}

// notEarly fails when the rule of a pinned entry starts before the time is up.
func (k *kernel) notEarly(e *entry) {
	c, starts := e.conn, e.expires.Add(-ctpolicy.Window)
	if maxAge := c.policy.MaxAge; !c.due() && (maxAge == 0 || starts < c.born.Add(maxAge)) {
		k.tb.Errorf("%s is pinned so that the rule starts %s too early", c, c.born.Add(maxAge).Sub(starts))
	}
}

func (k *kernel) Create(t conntrack.Tuple, seconds uint32) error {
	if err := k.call("Create"); err != nil {
		return err
	}
	if k.find(t) != nil || k.find(reversed(t)) != nil {
		return fmt.Errorf("create entry %s: %w", t, unix.EEXIST)
	}
	for _, c := range k.conns {
		if c.tuple != t && c.tuple != reversed(t) || !c.open() {
			continue
		}
		if c.tuple != t {
			k.tb.Errorf("entry of %s is made the wrong way round", c)
		}
		e := k.newEntry(c, t, reversed(t))
		e.Label = conntrack.Label{}
		e.base = time.Duration(k.defaults[conntrack.TimeoutEstablished]) * time.Second
		e.expires = k.boot.Add(time.Duration(seconds) * time.Second)
		k.changes = append(k.changes, "Create")
		return nil
	}
	k.tb.Errorf("entry %s is made for no connection", t)
	return nil
}

func (k *kernel) Renew(old *conntrack.Entry, change func(*conntrack.Entry)) (conntrack.Entry, error) {
	e, err := k.change("Renew", old)
	if err != nil {
		return conntrack.Entry{}, err
	}
	c, anew := e.conn, k.read(e)
	if k.held[e.Orig] <= k.boot || k.held[e.Reply] <= k.boot {
		k.tb.Errorf("the entry of %s is renewed and nothing is held", c)
	}
	k.remove(e)
	if ctpolicy.Offloaded(&anew) {
		c.bypass = k.boot.Add(time.Second)
	}
	if k.between != nil {
		k.between()
	}
	if change(&anew); k.findIn(anew.Orig, anew.Zone) != nil || k.findIn(anew.Reply, anew.Zone) != nil {
		return conntrack.Entry{}, fmt.Errorf("renew %s: %w", anew.Orig, unix.EEXIST)
	}
	return k.read(k.renewed(c, &anew)), nil
}

// renewed has no timeout object.
func (k *kernel) renewed(c *conn, anew *conntrack.Entry) *entry {
	e := k.newEntry(c, anew.Orig, anew.Reply)
	start := e.Start
	e.Entry, e.Start = *anew, start
	e.ID++
	e.Status &^= conntrack.StatusOffload
	e.base = time.Duration(k.defaults[conntrack.TimeoutEstablished]) * time.Second
	e.expires = k.boot.Add(time.Duration(anew.Timeout) * time.Second)
	if e.State == 0 {
		k.tb.Errorf("the entry of %s is renewed without a state", c)
	}
	if ctpolicy.Pinned(&e.Entry) {
		k.notEarly(e)
	}
	return e
}

func (k *kernel) MarkClosed(old *conntrack.Entry) error {
	e, err := k.change("MarkClosed", old)
	if err != nil {
		return err
	}
	if e.conn.open() && !e.conn.due() {
		k.tb.Errorf("%s is marked closed and is open", e.conn)
	}
	e.State = conntrack.StateClose
	e.OrigFlags |= 0x04
	e.ReplyFlags |= 0x04
	return nil
}

func (k *kernel) Assure(old *conntrack.Entry) error {
	e, err := k.change("Assure", old)
	if err == nil {
		e.Status |= conntrack.StatusAssured
	}
	return err
}

func (k *kernel) Delete(old *conntrack.Entry) error {
	e, err := k.change("Delete", old)
	if errors.Is(err, conntrack.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	if wrongWay := e.Orig == reversed(e.conn.tuple); !wrongWay && e.conn.established() {
		k.tb.Errorf("the entry of %s is deleted, which is open", e.conn)
	}
	k.remove(e)
	return nil
}

// Sockets.

// A sockets is the same kernel: the two doors share the name of no method, but read better apart.
type sockets struct{ *kernel }

func (k sockets) each(fn func(c *conn, e *tcp) error) error {
	for _, c := range slices.Clone(k.conns) {
		for _, e := range []*tcp{c.client, c.server} {
			if e.here && e.state != sockdiag.Close {
				if err := fn(c, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (k sockets) socket(e *tcp, info bool) sockdiag.Socket {
	s := sockdiag.Socket{Local: e.local, Remote: e.remote, State: e.state, Cookie: e.cookie, HasInfo: info, Interface: e.device}
	if info {
		s.LastSent = k.boot.Sub(e.sent).Truncate(time.Millisecond)
		s.LastRecv = k.boot.Sub(e.got).Truncate(time.Millisecond)
		s.LastAck = min(s.LastSent, s.LastRecv)
	}
	return s
}

func (k sockets) LookupOn(local, remote netip.AddrPort, device uint32) (sockdiag.Socket, error) {
	if err := k.call("Lookup"); err != nil {
		return sockdiag.Socket{}, err
	}
	s, err := sockdiag.Socket{}, error(fmt.Errorf("look up socket: %w", sockdiag.ErrNotFound))
	_ = k.each(func(_ *conn, e *tcp) error {
		if e.local == local && e.remote == remote && (e.device == 0 || e.device == device) {
			s, err = k.socket(e, e.state != sockdiag.TimeWait), nil
		}
		return nil
	})
	return s, err
}

func (k sockets) List(q sockdiag.Query, fn func(*sockdiag.Socket) error) error {
	fault := k.call("List")
	err := k.each(func(_ *conn, e *tcp) error {
		s := k.socket(e, q.Info)
		in := func(ranges []sockdiag.PortRange, port uint16) bool {
			return slices.ContainsFunc(ranges, func(r sockdiag.PortRange) bool { return r.First <= port && port <= r.Last })
		}
		if fault != nil || q.States&(1<<e.state) == 0 || !in(q.LocalPorts, e.local.Port()) && !in(q.RemotePorts, e.remote.Port()) {
			return nil
		}
		return fn(&s)
	})
	return cmp.Or(fault, err)
}

func (k sockets) Listeners(fn func(netip.AddrPort) error) error {
	if err := k.call("Listeners"); err != nil {
		return err
	}
	for _, l := range k.listeners {
		if err := fn(l); err != nil {
			return err
		}
	}
	return nil
}

func (k sockets) Destroy(s *sockdiag.Socket) error {
	if err := k.call("Destroy"); err != nil {
		return err
	}
	if s.State == sockdiag.TimeWait || s.State == sockdiag.Listen || s.Cookie == 0 {
		return fmt.Errorf("destroy socket %s: %w", s, sockdiag.ErrRefused)
	}
	err := fmt.Errorf("destroy socket %s: %w", s, sockdiag.ErrNotFound)
	_ = k.each(func(c *conn, e *tcp) error {
		if e.cookie == s.Cookie && e.open() {
			if c.policy == nil {
				k.tb.Errorf("a socket of %s is destroyed, which no policy covers", c)
			}
			k.changes = append(k.changes, "Destroy")
			c.send(e, rst, "the reaper")
			err = nil
		}
		return nil
	})
	return err
}

// Remote ends.

// Send is for the end at to: an open one shows itself by a packet, a closed one by a reset.
func (k *kernel) Send(from, to netip.AddrPort, _ int) error {
	if err := k.call("Send"); err != nil {
		return err
	}
	if k.sent != nil {
		k.sent(to.String())
	}
	if to == k.unsendable && k.sendFault != nil {
		return k.sendFault
	}
	for _, c := range slices.Backward(k.conns) {
		for _, e := range []*tcp{c.client, c.server} {
			if e.local == to && e.remote == from {
				k.challenged(c, e)
				return nil
			}
		}
	}
	k.tb.Errorf("a challenge to %s as %s, which are no connection", to, from)
	return nil
}

func (k *kernel) challenged(c *conn, e *tcp) {
	if c.policy == nil {
		k.tb.Errorf("a challenge to an end of %s, which no policy covers", c)
	}
	if e.deaf != 0 {
		e.deaf--
		return
	}
	if e.answered != 0 && k.boot.Sub(e.answered) < 500*time.Millisecond {
		return
	}
	e.answered = k.boot
	talked := c.talked
	if e.open() {
		c.send(e, data, "")
	} else if entry := k.track(c, e, rst); entry != nil {
		k.ruled(c, entry, e) // the other end does not believe a reset with these numbers
		entry.refresh(k, conntrack.StateClose)
	}
	c.talked = talked // it has nothing to say
}

// The table.

func (k *kernel) Beat() error     { k.beats++; return nil }
func (k *kernel) StopBeat() error { return nil }

func (k *kernel) Note(text string) error {
	k.notes = append(k.notes, text)
	return nil
}

func (k *kernel) Closed(from, to netip.AddrPort) (time.Duration, bool, error) {
	if err := k.call("Closed"); err != nil {
		return 0, false, err
	}
	if from == k.unknown {
		return 0, false, errBroken
	}
	at, ok := k.closed[conntrack.Tuple{Src: from, Dst: to}]
	ago := k.boot.Sub(at)
	return ago, ok && ago <= ctpolicy.Window, nil
}

func (k *kernel) Hold(tuples ...conntrack.Tuple) error {
	if err := k.call("Hold"); err != nil {
		return err
	}
	for _, t := range tuples {
		k.held[t] = k.boot.Add(time.Second)
	}
	return nil
}

// A world is a kernel and a reaper that comes and goes.
type world struct {
	*kernel
	r       *Reaper
	sweepAt ctpolicy.Instant
	lag     time.Duration // by which the reaper wakes up late
	results []Result
	log     bytes.Buffer
	errs    []error
}

func newWorld(tb testing.TB, policies ...ctpolicy.Policy) *world {
	w := &world{kernel: newKernel(tb, policies...)}
	w.start()
	tb.Cleanup(func() {
		if tb.Failed() && w.log.Len() < 20000 {
			tb.Logf("the reaper's log:\n%s", &w.log)
		}
	})
	return w
}

// start is a new process, that knows only what the kernel and the table know.
func (w *world) start() {
	var readings []ctpolicy.Reading
	for _, note := range w.notes {
		if reading, ok := ctpolicy.ParseNote(note, bootID); ok {
			readings = append(readings, reading)
		}
	}
	timeline := ctpolicy.NewTimeline(readings...)
	if timeline.Observe(w.Now()) {
		_ = w.Note(w.Now().Note(bootID)) // as each apply does
	}
	installed := map[string][]uint32{}
	for _, p := range w.policies.Policies() {
		installed[p.Name] = []uint32{uint32(p.EntryTimeout() / time.Second)}
	}
	k := w.kernel
	w.r = &Reaper{
		Policies: k.policies, Flows: k, Sockets: sockets{k}, Challenger: k, Table: k, Clock: k, BootID: bootID,
		Judge: &ctpolicy.Judge{
			Timeline: timeline, Since: k.boot, Defaults: k.defaults, Installed: installed,
		},
		Local: isHere,
		Log:   slog.New(slog.NewTextHandler(&w.log, nil)),
		Ended: func(r *Result) { w.verify(r); w.results = append(w.results, *r) },
	}
	w.r.Init()
	w.sweepAt = k.boot
}

// verify compares a result with what is true of each end.
func (w *world) verify(r *Result) {
	for _, c := range slices.Backward(w.conns) {
		client, server := c.client, c.server
		if c.tuple == reversed(r.Flow) { // an orphan whose ports do not tell
			client, server = server, client
		}
		if client.local != r.Flow.Src || client.remote != r.Flow.Dst || c.open() && !c.due() { // the next one on its ports
			continue
		}
		w.verifyEnd(c, client, &r.Client)
		w.verifyEnd(c, server, &r.Server)
		return
	}
	w.tb.Errorf("a result of no connection: %+v", r)
}

func (w *world) verifyEnd(c *conn, e *tcp, r *EndResult) {
	_, ruled := w.closed[c.way(e)]
	wrong := e.open()
	switch r.Method {
	case MethodNone:
		wrong = r.Reason == ""
	case MethodSocket:
		wrong = wrong || !e.here
	case MethodPeer:
		wrong = wrong || !c.other(e).here
	case MethodRule:
		wrong = wrong || !ruled
	}
	if wrong {
		w.tb.Errorf("%s: the end %s is %v, result %+v", c, e.local, e.state, r)
	}
}

// errKilled ends a reaper in the middle of its work.
var errKilled = errors.New("killed")

func (w *world) kill() { w.r, w.killed = nil, w.calling }

// work does what Reaper.Run does when it wakes up.
func (w *world) work() {
	defer func() {
		if err := recover(); err != nil && err != errKilled {
			panic(err)
		}
	}()
	r := w.r
	if now := w.boot; now >= w.sweepAt {
		w.sweepAt = now.Add(r.Interval())
		w.sweep()
	}
	r.serve()
	w.check()
}

// run is Reaper.Run in virtual time.
func (w *world) run(d time.Duration) {
	until := w.boot.Add(d)
	for w.r != nil {
		next := max(w.boot, min(w.sweepAt, w.r.nextAt(w.sweepAt)).Add(w.lag))
		if next > until {
			break
		}
		w.elapse(next)
		if w.r == nil {
			break
		}
		w.work()
	}
	w.elapse(max(w.boot, until))
}

func (w *world) sweep() {
	if err := w.r.Sweep(); err != nil {
		w.errs = append(w.errs, err)
	}
	w.check()
}

// check is for what is true between any two steps: a flow is known if and only if it waits in the queue.
func (w *world) check() {
	s := w.r.schedule
	if len(s.queue) != len(s.known) {
		w.tb.Errorf("%d flows wait and %d are known", len(s.queue), len(s.known))
	}
}

// one is the only result.
func (w *world) one() Result {
	w.tb.Helper()
	if len(w.results) != 1 {
		w.tb.Fatalf("%d results, want one: %+v", len(w.results), w.results)
	}
	return w.results[0]
}

// drained fails unless nothing is left to do but to delete the entries of what has just ended.
func (w *world) drained() {
	w.tb.Helper()
	n := w.r.Scheduled()
	for _, it := range w.r.schedule.queue {
		if it.step == stepForget && it.at <= w.boot.Add(lingering) {
			n--
		}
	}
	if n != 0 {
		w.tb.Errorf("%d flows are still scheduled", n)
	}
}

// challengesTake is how long a flow is challenged until the reaper gives up.
const challengesTake = challenge.Attempts * challenge.Interval
