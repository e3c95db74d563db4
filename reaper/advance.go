package reaper

import (
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

const (
	// watchEvery is how finely the end of a pause is watched, whose entry counts whole seconds only.
	watchEvery = 15 * time.Millisecond
	// repeatAfter is the time between two tries to end a flow.
	repeatAfter = 600 * time.Millisecond
	maxTries    = 3
)

// advance does the next step of an item that has been popped, after a fresh look at its entry.
func (r *Reaper) advance(it *item) {
	r.observeClock() // the flow may have been born after a step that the sweep has not seen
	if it.cookie != 0 {
		r.advanceOrphan(it)
		return
	}
	e, err := r.Flows.Again(&it.entry)
	if err != nil {
		r.unreadable(it, err)
		return
	}
	it.entry = e
	switch it.step {
	case stepChallenge:
		r.challenge(it)
		return
	case stepConfirm:
		r.confirm(it)
		return
	case stepForget:
		r.deleteEnded(it)
		return
	}
	if it.forced {
		r.force(it)
		return
	}
	if !ctpolicy.Open(&e) && (it.step != stepStrike || !ctpolicy.Pinned(&e)) {
		r.schedule.drop(it)
		return
	}
	now := r.now()
	d := r.fresh(it, &e, now)
	switch {
	case d.Passed:
		r.strike(it)
	case d.At > now.Add(it.policy.Lead()):
		r.schedule.drop(it) // it talked; a later sweep will find it again
	case it.step == stepPin && d.Cause == ctpolicy.CauseMaxAge && !ctpolicy.Offloaded(&e):
		r.pin(it)
	case d.Cause == ctpolicy.CauseIdle:
		r.watch(it, d, now)
	default:
		it.deadline = d
		next, at := nextStep(&e, d, now)
		r.schedule.later(it, next, max(at, now))
	}
}

// watch puts an item off until its pause may be long enough. Its entry tells the pause to the second, a socket of this
// host to the millisecond.
func (r *Reaper) watch(it *item, d ctpolicy.Deadline, now ctpolicy.Instant) {
	it.deadline = ctpolicy.Deadline{At: now, Cause: d.Cause} // not passed yet
	at := max(d.At, now.Add(watchEvery))
	if d.At <= now {
		sockets, _ := r.lookup(it) // without a socket the entry is looked at more often
		for i := range sockets {
			if pause, ok := pauseOf(&sockets[i]); ok {
				it.deadline.At = max(now, min(now.Add(it.policy.Idle-pause), d.At.Add(time.Second)))
				at = max(at, it.deadline.At)
			}
		}
	}
	r.schedule.later(it, stepWatch, at)
}

// force is for the items of PinAll and EndAll.
func (r *Reaper) force(it *item) {
	if it.step == stepPin && r.now() < it.deadline.At && !ctpolicy.Offloaded(&it.entry) {
		r.pin(it)
		return
	}
	r.strike(it)
}

// fresh judges the entry as it is now. What was found before stays in force for max_age: reading a pinned entry again
// would move its deadline by the fraction of a second that the kernel cuts.
func (r *Reaper) fresh(it *item, e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Deadline {
	if it.deadline.Cause == ctpolicy.CauseMaxAge && ctpolicy.Pinned(e) {
		d := it.deadline
		d.Passed = now >= d.At
		return d
	}
	d := r.judge(it.policy, e, now)
	if d.Passed && d.Cause == ctpolicy.CauseIdle && it.deadline.Cause != ctpolicy.CauseIdle {
		it.deadline = ctpolicy.Deadline{At: min(d.At.Add(time.Second), now), Cause: d.Cause}
	}
	if d.Cause == ctpolicy.CauseMaxAge {
		it.deadline = d
	}
	return d
}

// judge is the deadline of an entry that was read just now. Without max_age that of a pinned entry is where the rule
// starts: its pause can't be read any more.
func (r *Reaper) judge(p *ctpolicy.Policy, e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Deadline {
	if p.MaxAge == 0 && ctpolicy.Pinned(e) {
		at := ctpolicy.PinnedDeadline(e, now)
		return ctpolicy.Deadline{At: at, Cause: ctpolicy.CauseIdle, Passed: now >= at}
	}
	return r.Judge.Deadline(p, e, now)
}

// unreadable handles an item whose entry can't be read: mostly because the flow has ended by itself.
func (r *Reaper) unreadable(it *item, err error) {
	if gone(err) {
		r.schedule.drop(it)
		r.vanished(it)
		return
	}
	r.tryAgain(it, it.step, err)
}

// vanished reports a flow whose entry has gone while it was being ended.
func (r *Reaper) vanished(it *item) {
	switch {
	case it.survived:
	case it.step == stepChallenge || it.step == stepConfirm:
		it.settle(MethodGone, "") // its client has used its port again
		r.report(it)
	case it.tries > 0 && it.step != stepPin:
		it.settle(MethodNone, "its entry expired before it could be ended")
		r.report(it)
	}
}

// tryAgain repeats a step some times, and then reports a survivor.
func (r *Reaper) tryAgain(it *item, s step, err error) {
	if it.tries++; it.tries < maxTries {
		r.schedule.later(it, s, r.now().Add(repeatAfter))
		return
	}
	it.settle(MethodNone, err.Error())
	r.survived(it)
}
