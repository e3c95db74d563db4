package reaper

import (
	"errors"
	"fmt"
	"time"

	"curfew/ctpolicy"
	"curfew/reaper/sockdiag"
)

// idleSlack is how far the socket's own clock may differ from conntrack's.
const idleSlack = 20 * time.Millisecond

// restAfter is when to try again to end a survivor: some times within the window for which its entry lasts.
const restAfter = ctpolicy.Window / 5

// strike ends a flow whose time is up. The sockets are looked up first and the entry is read again after that: if it
// is still the same flow's, then so are the sockets, because a new connection on the same tuple gets a new entry.
func (r *Reaper) strike(it *item) {
	if !r.schedule.turn(it, r.now()) {
		return
	}
	sockets, err := r.lookup(&it.entry)
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
	if r.talksOn(it, sockets) {
		return
	}
	it.deadline.Passed = true
	if !it.policy.Enforced() {
		r.wouldEnd(it)
		return
	}
	r.schedule.count(it, r.now())
	if err := r.arm(it); gone(err) || (err != nil && len(sockets) == 0) {
		r.unreadable(it, err)
		return
	}
	if err := r.destroy(it, sockets); err != nil {
		r.tryAgain(it, stepStrike, err)
		return
	}
	if it.settled() {
		r.forget(it)
		return
	}
	// There is no socket here (any more): the rule may have reset it, which tells the other end nothing.
	r.schedule.later(it, stepChallenge, max(r.now(), it.deadline.At.Add(ruleDelay), it.rule.Add(ruleDelay/2)))
}

// talks tells that a pause has ended at the last moment, or that the entry pauses and a socket does not, because its
// packets pass conntrack by. Then the item is put off.
func (r *Reaper) talks(it *item, sockets []socket) bool {
	now := r.now()
	if d := r.judge(it.policy, &it.entry, now); d.Cause == ctpolicy.CauseIdle && !d.Passed && !ctpolicy.Pinned(&it.entry) {
		r.watch(it, d, now)
		return true
	}
	for i := range sockets {
		pause, ok := pauseOf(&sockets[i].Socket)
		if ok && pause < it.policy.Idle-idleSlack {
			r.putOff(it, now.Add(it.policy.Idle-pause), now)
			return true
		}
	}
	return false
}

// putOff is for a flow that talks and whose idle limit can't pass before at. Its max_age can.
func (r *Reaper) putOff(it *item, at, now ctpolicy.Instant) {
	it.deadline.Passed = false
	soft, _ := it.policy.AgeEnds(it.entry.Orig, r.birth(&it.entry, now))
	if it.policy.Grace > 0 && now >= soft && !ctpolicy.Pinned(&it.entry) {
		r.linger(it, now)
		return
	}
	r.schedule.later(it, stepWatch, r.beforeMaxAge(it, at, now))
}

// beforeMaxAge is at, or when max_age comes first.
func (r *Reaper) beforeMaxAge(it *item, at, now ctpolicy.Instant) ctpolicy.Instant {
	soft, _ := it.policy.AgeEnds(it.entry.Orig, r.birth(&it.entry, now))
	if it.policy.MaxAge == 0 || ctpolicy.Pinned(&it.entry) || now >= soft {
		return at
	}
	return min(at, soft)
}

// jiffy is the longest one (HZ=100). Sockets count jiffies, whole ones (tcp_get_info), so a pause may be one shorter than it
// looks.
const jiffy = 10 * time.Millisecond

// pauseOf is how long a socket has neither sent nor received anything, at least.
func pauseOf(s *sockdiag.Socket) (time.Duration, bool) {
	return max(0, min(s.LastSent, s.LastRecv, s.LastAck)-jiffy), s.HasInfo
}

// destroy ends the sockets, and settles the ends: the reset of one tells the other. One that has ended meanwhile is no
// error.
func (r *Reaper) destroy(it *item, sockets []socket) error {
	var failed error
	destroyed := false
	for i := range sockets {
		s := &sockets[i]
		err := r.Sockets.Destroy(&s.Socket)
		switch {
		case err == nil:
			it.outcomes[s.end].method, destroyed = MethodSocket, true
		case !errors.Is(err, sockdiag.ErrNotFound):
			failed = fmt.Errorf("end the socket %s: %w", s.Local, err)
		}
	}
	if !destroyed {
		return failed
	}
	it.settleOpen(MethodPeer)
	return nil
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
	if !ctpolicy.MidFlow(&it.entry) || ctpolicy.Offloaded(&it.entry) {
		r.deleteEntry(&it.entry)
	}
}

// survived reports a flow that could not be ended, once, and strikes again after a while. Its pinned entry stays
// meanwhile, so the rule answers what an end still sends.
func (r *Reaper) survived(it *item) {
	if !it.reported {
		r.report(it)
	}
	it.reported, it.tries, it.asked = true, 0, 0
	for i := range it.outcomes {
		it.outcomes[i].asked = false
	}
	if r.Policies.Flow(&it.entry) == nil {
		r.schedule.drop(it) // see Use
		return
	}
	r.schedule.later(it, stepStrike, r.now().Add(restAfter))
}
