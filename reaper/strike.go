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
	if it.deadline.Cause == ctpolicy.CauseIdle && r.talks(it, sockets) {
		return
	}
	if !ctpolicy.Pinned(&e) {
		// From now on the rule answers what either end still sends.
		seconds, _ := ctpolicy.PinTimeout(it.deadline.At, r.now())
		if err := r.Flows.Pin(&e, seconds); gone(err) || (err != nil && len(sockets) == 0) {
			r.unreadable(it, err)
			return
		}
	}
	destroyed, err := r.destroy(sockets)
	switch {
	case err != nil:
		r.tryAgain(it, stepStrike, err)
	case destroyed == 0: // the rule may have been faster
		r.schedule.later(it, stepChallenge, max(r.now(), it.deadline.At.Add(ruleDelay), it.rule.Add(ruleDelay/2)))
	default:
		r.forget(it, MethodSocket)
	}
}

// lookup finds the ends of a flow that are sockets of this host.
func (r *Reaper) lookup(it *item) ([]sockdiag.Socket, error) {
	var found []sockdiag.Socket
	for _, end := range ends(&it.entry) {
		s, err := r.Sockets.Lookup(end.local, end.remote)
		if err != nil && !errors.Is(err, sockdiag.ErrNotFound) {
			return nil, fmt.Errorf("look up the socket %s: %w", end.local, err)
		}
		// The remains of a closed socket (TIME_WAIT, or FIN_WAIT2 without a process) can't be destroyed.
		if err == nil && openSockets&sockdiag.States(s.State) != 0 {
			found = append(found, s)
		}
	}
	return found, nil
}

// talks tells that a pause has ended at the last moment, or that the entry pauses and a socket does not, because its
// packets pass conntrack by. Then the item is put off.
func (r *Reaper) talks(it *item, sockets []sockdiag.Socket) bool {
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

// destroy ends the sockets, and answers how many. One that has ended meanwhile is no error.
func (r *Reaper) destroy(sockets []sockdiag.Socket) (destroyed int, err error) {
	for i := range sockets {
		err := r.Sockets.Destroy(&sockets[i])
		if errors.Is(err, sockdiag.ErrNotFound) {
			continue
		}
		if err != nil {
			return destroyed, fmt.Errorf("end the socket %s: %w", sockets[i].Local, err)
		}
		destroyed++
	}
	return destroyed, nil
}

// lingering is how long the entry of an ended flow stays, to answer packets that were on their way.
const lingering = 2 * time.Second

// forget reports the end. The client may use its port again at once: the reset has closed the entry, and a pinned entry
// that is closed gives way to a SYN.
func (r *Reaper) forget(it *item, method Method) {
	r.report(it, method, "")
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

// survived gives up for a while. Then a sweep finds the flow again, if it is still there.
func (r *Reaper) survived(it *item, reason string) {
	r.report(it, MethodNone, reason)
	r.schedule.later(it, stepRest, r.now().Add(restAfter))
}
