package reaper

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// idleSlack is how far the socket's own clock may differ from conntrack's.
const idleSlack = 20 * time.Millisecond

// restAfter is when to try again to end a survivor: some times within the window for which its entry lasts.
const restAfter = ctpolicy.Window / 5

// An end is one side of a flow, by the addresses that this side knows: the client the original tuple, the server the
// reply tuple.
type end struct{ local, remote netip.AddrPort }

func ends(e *conntrack.Entry) [2]end {
	return [2]end{{e.Orig.Src, e.Orig.Dst}, {e.Reply.Src, e.Reply.Dst}}
}

// pair is the sockets of client and server, as far as they are here; others have no cookie.
type pair [2]sockdiag.Socket

// none tells whether neither is here.
func (p *pair) none() bool { return p[0].Cookie == 0 && p[1].Cookie == 0 }

// strike ends a flow whose time is up. The sockets are looked up first and the entry is read again after that: if it
// is still the same flow's, then so are the sockets, because a new connection on the same tuple gets a new entry.
func (r *Reaper) strike(it *item) {
	sockets, err := r.lookup(it)
	if err != nil {
		r.tryAgain(it, stepStrike, err)
		return
	}
	e, err := r.Flows.Again(&it.entry)
	if err != nil {
		r.unreadable(it, err)
		return
	}
	it.entry = e
	if it.deadline.Cause == ctpolicy.CauseIdle && r.talks(it, &sockets) {
		return
	}
	// From now on the rule answers what either end still sends.
	if err := r.enforce(it); gone(err) || (err != nil && sockets.none()) {
		r.unreadable(it, err)
		return
	}
	destroyed, err := r.destroy(it, &sockets)
	switch {
	case err != nil:
		r.tryAgain(it, stepStrike, err)
	case !destroyed: // its ends are elsewhere, or the rule was faster
		it.tries = 0
		r.schedule.later(it, stepChallenge, max(r.now(), it.deadline.At.Add(ruleDelay), it.rule.Add(ruleDelay/2)))
	default:
		it.settle(MethodPeer, "")
		r.forget(it)
	}
}

// lookup finds the ends of a flow that are sockets of this host.
func (r *Reaper) lookup(it *item) (found pair, err error) {
	if r.elsewhere(&it.entry) {
		return found, nil
	}
	for i, end := range ends(&it.entry) {
		s, err := r.Sockets.Lookup(end.local, end.remote, 0)
		if device := r.devices[end]; errors.Is(err, sockdiag.ErrNotFound) && device != 0 {
			s, err = r.Sockets.Lookup(end.local, end.remote, device)
		}
		if err != nil && !errors.Is(err, sockdiag.ErrNotFound) {
			return found, fmt.Errorf("look up the socket %s: %w", end.local, err)
		}
		// The remains of a closed socket (TIME_WAIT, or FIN_WAIT2 without a process) can't be destroyed.
		if err == nil && openSockets&sockdiag.States(s.State) != 0 {
			found[i] = s
		}
	}
	return found, nil
}

// elsewhere tells that sockets with the addresses of a flow are another flow's: sockets know nothing of zones.
func (r *Reaper) elsewhere(e *conntrack.Entry) bool {
	if e.Zone == 0 {
		return false
	}
	other, err := r.Flows.Get(e.Orig, 0)
	return err == nil && other.Zone == 0
}

// talks tells that a pause has ended at the last moment, or that the entry pauses and a socket does not, because its
// packets pass conntrack by. Then the item is put off.
func (r *Reaper) talks(it *item, sockets *pair) bool {
	now := r.now()
	if d := r.judge(it.policy, &it.entry, now); d.Cause == ctpolicy.CauseIdle && !d.Passed && !ctpolicy.Pinned(&it.entry) {
		r.watch(it, d, now)
		return true
	}
	for i := range sockets {
		pause, ok := pauseOf(&sockets[i])
		if ok && pause < it.policy.Idle-idleSlack {
			r.schedule.later(it, stepWatch, now.Add(it.policy.Idle-pause))
			return true
		}
	}
	return false
}

// pauseOf is how long a socket has neither sent nor received anything.
func pauseOf(s *sockdiag.Socket) (time.Duration, bool) {
	return min(s.LastSent, s.LastRecv, s.LastAck), s.HasInfo
}

// destroy ends the sockets, and tells whether there was one. One that has ended meanwhile is no error.
func (r *Reaper) destroy(it *item, sockets *pair) (destroyed bool, err error) {
	for i := range sockets {
		if sockets[i].Cookie == 0 {
			continue
		}
		err := r.Sockets.Destroy(&sockets[i])
		if errors.Is(err, sockdiag.ErrNotFound) {
			continue
		}
		if err != nil {
			return destroyed, fmt.Errorf("end the socket %s: %w", sockets[i].Local, err)
		}
		it.results[i].Method = MethodSocket
		destroyed = true
	}
	return destroyed, nil
}

// lingering is how long the entry of an ended flow stays, to answer packets that were on their way.
const lingering = 2 * time.Second

// forget reports the end. The client may use its port again at once: the reset has closed the entry, and a pinned entry
// that is closed gives way to a SYN.
func (r *Reaper) forget(it *item) {
	r.report(it)
	e, err := r.Flows.Again(&it.entry)
	if err == nil && ctpolicy.MidFlow(&e) {
		err = r.Flows.MarkClosed(&e) // conntrack has not seen the reset, or did not believe it
	}
	if err != nil && !gone(err) {
		r.Log.Warn("mark the entry of an ended connection", "flow", it.entry.Orig, "error", err)
	}
	r.schedule.later(it, stepForget, r.now().Add(lingering))
}

// deleteEnded deletes the entry of a flow that was ended a while ago.
func (r *Reaper) deleteEnded(it *item) {
	r.schedule.drop(it)
	if !ctpolicy.MidFlow(&it.entry) {
		r.deleteEntry(&it.entry)
	}
}

// survived reports a flow, once, and tries again later, for as long as its entry is there.
func (r *Reaper) survived(it *item) {
	if !it.survived {
		r.report(it)
	}
	it.survived = true
	for i := range it.results {
		if it.results[i].Method == MethodNone {
			it.results[i] = EndResult{}
		}
	}
	it.tries = 0
	r.schedule.later(it, stepStrike, r.now().Add(restAfter))
}
