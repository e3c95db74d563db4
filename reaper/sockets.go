package reaper

import (
	"net/netip"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// openSockets are the states of a connection whose handshake is complete.
var openSockets = sockdiag.States(sockdiag.Established, sockdiag.FinWait1, sockdiag.FinWait2, sockdiag.CloseWait,
	sockdiag.LastAck, sockdiag.Closing)

// coveredSockets calls fn for the sockets of this host that a policy covers, with the tuple as the client sent its
// first packet. The client is the other side where the local port has a listener. A local port without one is a
// client's, so there the remote port decides. With info, fn learns the sockets' pauses.
func (r *Reaper) coveredSockets(info bool, fn func(s *sockdiag.Socket, tuple conntrack.Tuple, p *ctpolicy.Policy) error) error {
	clear(r.listens[:])
	err := r.Sockets.Listeners(func(local netip.AddrPort) error {
		r.listens[local.Port()/64] |= 1 << (local.Port() % 64)
		return nil
	})
	if err != nil {
		return err
	}
	ports := r.Policies.Ports()
	ranges := make([]sockdiag.PortRange, len(ports))
	for i, p := range ports {
		ranges[i] = sockdiag.PortRange(p)
	}
	bound := map[end]uint32{}
	query := sockdiag.Query{States: openSockets, LocalPorts: ranges, RemotePorts: ranges, Info: info}
	err = r.Sockets.List(query, func(s *sockdiag.Socket) error {
		rememberDevice(bound, s)
		if tuple, p := r.direction(s); p != nil {
			return fn(s, tuple, p)
		}
		return nil
	})
	if err == nil {
		r.bound = bound
	}
	return err
}

func (r *Reaper) direction(s *sockdiag.Socket) (conntrack.Tuple, *ctpolicy.Policy) {
	local := s.Local.Port()
	if r.listens[local/64]&(1<<(local%64)) != 0 {
		tuple := conntrack.Tuple{Src: s.Remote, Dst: s.Local}
		return tuple, r.Policies.Tuple(tuple, s.Local.Addr())
	}
	tuple := conntrack.Tuple{Src: s.Local, Dst: s.Remote}
	return tuple, r.Policies.Tuple(tuple, s.Remote.Addr())
}

// An orphan is a covered socket that conntrack does not know: its table was flushed or is full, or its packets are not
// tracked. Its age counts from when it was first seen, if no entry was known before: late rather than early.
type orphan struct {
	tuple conntrack.Tuple
	first ctpolicy.Instant
	round uint64 // the last sweep that saw it

	reported bool // that it would have been ended
}

// sweepSockets schedules orphans that are due within lead.
func (r *Reaper) sweepSockets() error {
	r.round++
	err := r.coveredSockets(r.Policies.HasIdle(), func(s *sockdiag.Socket, tuple conntrack.Tuple, p *ctpolicy.Policy) error {
		o := r.orphans[s.Cookie]
		if o != nil {
			o.round = r.round // also when the filter takes it for seen by mistake
		}
		t, younger := r.remember(s, tuple)
		if r.seen.has(tuple) || (o == nil && r.tracked(tuple)) {
			if younger || t != nil && t.start != 0 && !r.seen.has(tuple) {
				r.lose(s, tuple, p, t, nil)
			}
			return nil
		}
		if o == nil {
			o = &orphan{tuple: tuple, first: r.now()}
			r.orphans[s.Cookie] = o
		}
		o.round = r.round
		if !p.Ends() || (o.reported && !p.Enforced()) {
			return nil
		}
		if t != nil {
			o.first = min(o.first, r.born(t))
		}
		var due *item
		if d := orphanDeadline(p, o, s, r.now()); d.At <= r.now().Add(p.Lead()) {
			due = r.newOrphanItem(s.Cookie, o, p, d)
		}
		if due != nil || t != nil && t.start != 0 {
			r.lose(s, tuple, p, t, due)
		}
		return nil
	})
	if err == nil {
		r.forgetBirths()
	}
	for cookie, o := range r.orphans {
		if err == nil && o.round != r.round {
			delete(r.orphans, cookie)
		}
	}
	r.restoreAll()
	return err
}

// tracked tells that conntrack knows the flow after all: it was born during the sweep, or is redirected to this host's
// port. An entry the wrong way round does not count.
func (r *Reaper) tracked(tuple conntrack.Tuple) bool {
	e, err := r.Flows.Get(tuple, 0)
	if err == nil {
		r.pickUp(&e, tuple)
		return e.Orig == tuple
	}
	return gone(err) && r.redirected(tuple)
}

// pickUp assures the entry of an open socket that conntrack has picked up in mid-flow: sweeps pass over others. The socket
// tells that both ends have talked, also where conntrack has seen one of them only.
func (r *Reaper) pickUp(e *conntrack.Entry, tuple conntrack.Tuple) {
	if p := r.Policies.Flow(e); p != nil && p.Enforced() && e.Orig == tuple && ctpolicy.MidFlow(e) && !ctpolicy.Open(e) {
		r.assure(e)
	}
}

// redirected tells that the client dialled another address than the one that the server's socket has: then only the
// server's answers have the socket's addresses.
func (r *Reaper) redirected(tuple conntrack.Tuple) bool {
	answer := conntrack.Tuple{Src: tuple.Dst, Dst: tuple.Src}
	e, err := r.Flows.Get(answer, 0)
	return err == nil && e.Reply == answer
}

func (r *Reaper) newOrphanItem(cookie uint64, o *orphan, p *ctpolicy.Policy, d ctpolicy.Deadline) *item {
	it := &item{cookie: cookie, policy: p, deadline: d, birth: o.first, step: stepStrike, at: d.At}
	it.entry.Orig = o.tuple
	it.entry.Reply = conntrack.Tuple{Src: o.tuple.Dst, Dst: o.tuple.Src}
	return it
}

// orphanDeadline takes the pause from the socket itself.
func orphanDeadline(p *ctpolicy.Policy, o *orphan, s *sockdiag.Socket, now ctpolicy.Instant) ctpolicy.Deadline {
	var d ctpolicy.Deadline
	if p.MaxAge > 0 {
		d = orphanAge(p, o, s, now)
	}
	if pause, ok := pauseOf(s); ok && p.Idle > 0 {
		if at := now.Add(p.Idle - pause); d.Cause == "" || at < d.At {
			d = ctpolicy.Deadline{At: at, Cause: ctpolicy.CauseIdle}
		}
	}
	if d.Cause == "" {
		return ctpolicy.Deadline{At: now.Add(p.Idle), Cause: ctpolicy.CauseIdle}
	}
	d.Passed = now >= d.At
	return d
}

// orphanTalks puts off what is not to be ended yet.
func (r *Reaper) orphanTalks(it *item, d ctpolicy.Deadline) {
	if it.policy.Grace > 0 && d.Cause == ctpolicy.CauseMaxAge {
		r.schedule.later(it, stepStrike, d.At)
		return
	}
	r.schedule.drop(it) // the next sweep decides
}

// orphanAge is what max_age says. In its grace a socket that has not paused yet may have at At.
func orphanAge(p *ctpolicy.Policy, o *orphan, s *sockdiag.Socket, now ctpolicy.Instant) ctpolicy.Deadline {
	soft := o.first.Add(p.AgeLimit(o.tuple))
	at := soft
	if p.Grace > 0 && now >= soft {
		at = soft.Add(p.Grace)
		if pause, ok := pauseOf(s); ok {
			at = min(at, max(soft, now.Add(ctpolicy.GracePause-pause)))
		}
	}
	return ctpolicy.Deadline{At: at, Cause: ctpolicy.CauseMaxAge}
}

// advanceOrphan ends the socket, if it is still the one that was seen and its time is up.
func (r *Reaper) advanceOrphan(it *item) {
	o := r.orphans[it.cookie]
	sockets, err := r.lookup(&it.entry)
	if err != nil {
		r.tryAgain(it, stepStrike, err)
		return
	}
	for i := range sockets {
		s := &sockets[i]
		if s.Cookie != it.cookie || o == nil {
			continue
		}
		if r.tracked(o.tuple) {
			r.restore(&lost{socket: end{s.Local, s.Remote}, cookie: s.Cookie, tuple: o.tuple, policy: it.policy, born: o.first})
			continue
		}
		d := orphanDeadline(it.policy, o, &s.Socket, r.now())
		if !d.Passed {
			r.orphanTalks(it, d)
			return
		}
		it.deadline = d
		if !it.policy.Enforced() {
			if o.reported {
				r.schedule.drop(it)
				return
			}
			r.markSockets(sockets)
			r.wouldEnd(it)
			return
		}
		if !r.schedule.turn(it, r.now()) {
			return
		}
		r.schedule.count(it, r.now())
		if err := r.destroy(it, sockets[i:i+1]); err != nil {
			r.tryAgain(it, stepStrike, err)
			return
		}
		r.schedule.drop(it)
		if it.settled() {
			r.report(it)
		}
		return
	}
	r.schedule.drop(it) // it ended by itself, or conntrack knows it now
}
