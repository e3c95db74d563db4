package reaper

import (
	"fmt"
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
	case stepForget:
		r.deleteEnded(it)
		return
	}
	switch {
	case it.forced:
		r.force(it)
	case ctpolicy.Open(&e) || (it.step == stepStrike && resetByRule(&e)):
		r.proceed(it)
	default:
		r.schedule.drop(it) // it has closed by itself
	}
}

// resetByRule tells that an entry was closed by a reset, perhaps the rule's, which only one end was told of.
func resetByRule(e *conntrack.Entry) bool {
	return ctpolicy.Pinned(e) && e.State == conntrack.StateClose
}

// proceed does what the deadline asks for, as it is now.
func (r *Reaper) proceed(it *item) {
	now := r.now()
	d := r.fresh(it, &it.entry, now)
	next, at := nextStep(it.policy, &it.entry, d, now)
	switch {
	case d.Passed:
		it.deadline.Passed = true
		r.strike(it)
	case d.At > now.Add(it.policy.Lead()):
		r.schedule.drop(it) // it talked; a later sweep will find it again
	case lingers(it.policy, &it.entry, d):
		r.linger(it, now)
	case next == stepWatch:
		r.watch(it, d, now)
	case next == stepPin && it.step == stepPin:
		r.pin(it)
	default:
		it.deadline = d
		r.schedule.later(it, next, max(at, now))
	}
}

// watch puts an item off until its pause may be long enough. Its entry tells the pause to the second, a socket of this
// host to the millisecond.
func (r *Reaper) watch(it *item, d ctpolicy.Deadline, now ctpolicy.Instant) {
	it.deadline = ctpolicy.Deadline{At: now, Cause: d.Cause} // not passed yet
	at := max(d.At, now.Add(watchEvery))
	if d.At <= now {
		sockets, _ := r.lookup(&it.entry) // without a socket the entry is looked at more often
		for i := range sockets {
			if pause, ok := pauseOf(&sockets[i].Socket); ok {
				it.deadline.At = max(now, min(now.Add(it.policy.Idle-pause), d.At.Add(time.Second)))
				at = max(at, it.deadline.At)
			}
		}
	}
	r.schedule.later(it, stepWatch, r.beforeMaxAge(it, at, now))
}

// force is for the items of PinAll and EndAll.
func (r *Reaper) force(it *item) {
	switch {
	case it.step != stepPin && !ctpolicy.MidFlow(&it.entry) && !resetByRule(&it.entry):
		r.schedule.drop(it) // it has closed by itself
	case it.step != stepPin || r.now() >= it.deadline.At:
		r.strike(it)
	case ctpolicy.Offloaded(&it.entry):
		r.schedule.later(it, stepStrike, it.deadline.At)
	default:
		r.pin(it)
	}
}

// fresh judges the entry as it is now. What was found before stays in force for max_age, and after a strike: reading a
// pinned entry again would move its deadline by the fraction of a second that the kernel cuts.
func (r *Reaper) fresh(it *item, e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Deadline {
	if ctpolicy.Pinned(e) && (it.deadline.Cause == ctpolicy.CauseMaxAge || it.deadline.Passed) {
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
	if r.guessed(p, e) {
		return r.observed(p, e, now)
	}
	return r.deadline(p, e, now)
}

// unreadable handles an item whose entry can't be read: mostly because the flow has ended by itself.
func (r *Reaper) unreadable(it *item, err error) {
	if !gone(err) {
		r.tryAgain(it, it.step, err)
		return
	}
	r.schedule.drop(it)
	switch {
	case it.reported || !it.policy.Enforced():
	case it.step == stepPin || it.step == stepForget:
	case it.tries > 0 && (it.deadline.Passed || it.deadline.Cause == ctpolicy.CauseMaxAge): // else it may have talked since
		it.blame("could not be ended before the entry was gone")
		r.report(it)
	case it.step == stepChallenge:
		it.settleOpen(MethodGone) // its client has used its port again
		r.report(it)
	}
}

// tryAgain repeats a step some times. Then a flow has survived, if its time is up.
func (r *Reaper) tryAgain(it *item, s step, err error) {
	now := r.now()
	it.tries++
	switch {
	case it.tries < maxTries:
		r.schedule.later(it, s, now.Add(repeatAfter))
	case s == stepForget || !it.policy.Enforced():
		r.schedule.drop(it) // a sweep finds its entry
	case now < it.deadline.At:
		r.Log.Warn("prepare the end of a connection", "flow", it.entry.Orig, "error", err)
		it.tries = 0
		r.schedule.later(it, stepStrike, it.deadline.At)
	default:
		it.blame(fmt.Sprintf("could not be ended: %v", err))
		r.survived(it)
	}
}
