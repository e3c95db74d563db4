package reaper

import (
	"cmp"
	"net/netip"
	"slices"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
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
	noLabels     bool // entries have no room for a label
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
	if p := k.policies.Flow(&e.Entry); p != nil && p.Enforced() && !k.noRules {
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
	return c.mayEnd || p != nil && (c.tooOld() || p.Idle > 0 && now >= c.talked.Add(p.Idle))
}

// tooOld tells whether max_age, and then a pause or the end of the grace, has come.
func (c *conn) tooOld() bool {
	p, age := c.policy, c.k.boot.Sub(c.born)
	limit := p.AgeLimit(c.tuple)
	return p.MaxAge > 0 && age >= limit && (age >= limit+p.Grace || c.k.boot.Sub(c.talked) >= ctpolicy.GracePause)
}

// end closes one end, by force when it is not its own wish.
func (c *conn) end(e *tcp, force string) {
	if !e.open() {
		return
	}
	if force != "" && c.policy != nil && !c.policy.Enforced() {
		c.k.tb.Errorf("%s: ended by %s, although its policy only reports", c, force)
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
	if p := c.policy; p != nil && (p.Idle > 0 && k.boot >= c.talked.Add(p.Idle) || p.Grace > 0 && c.tooOld()) {
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
