package reaper

import (
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

const (
	// lingerEvery is how often the entry of a flow in its grace is looked at. It counts whole seconds, so a pause of a
	// second and this is never overlooked.
	lingerEvery = 500 * time.Millisecond
	// hardPin is how long before its hard end a flow with grace is pinned: from then on its entry shows no pause.
	hardPin = time.Second
	// hardPinSlack is how late that may be: the rule starts as much later.
	hardPinSlack = 100 * time.Millisecond
)

// lingers tells that max_age ends a flow at its first pause, and has not yet.
func lingers(p *ctpolicy.Policy, e *conntrack.Entry, d ctpolicy.Deadline) bool {
	return p.Grace > 0 && d.Cause == ctpolicy.CauseMaxAge && !d.Passed && !ctpolicy.Pinned(e)
}

// linger waits for the pause of a flow with grace, and strikes when a socket here shows it.
func (r *Reaper) linger(it *item, now ctpolicy.Instant) {
	soft, hard := it.policy.AgeEnds(it.entry.Orig, r.birth(&it.entry, now))
	it.deadline = ctpolicy.Deadline{At: hard, Cause: ctpolicy.CauseMaxAge}
	if now < soft {
		r.schedule.later(it, stepWatch, soft)
		return
	}
	var sockets []socket
	if r.Policies.Direction(it.entry.Orig.Src.Addr(), it.entry.Reply.Src.Addr()) != ctpolicy.Forwarded {
		sockets, _ = r.lookup(&it.entry) // without a socket the entry tells
	}
	pause, exact := shortestPause(sockets)
	if exact && pause >= ctpolicy.GracePause {
		it.deadline = ctpolicy.Deadline{At: max(soft, now.Add(ctpolicy.GracePause-pause)), Cause: ctpolicy.CauseMaxAge, Passed: true}
		r.strike(it)
		return
	}
	look := hard
	switch {
	case exact:
		look = now.Add(ctpolicy.GracePause - pause)
	case it.policy.Idle > 0, r.Judge.Certain(it.policy, &it.entry) && !ctpolicy.Offloaded(&it.entry):
		look = now.Add(lingerEvery)
	}
	r.lingerUntil(it, look, hard, now)
}

// lingerUntil puts an item off until the next look at its pause, and pins it before its hard end. A flow that is pinned
// earlier would not show its pause any more.
func (r *Reaper) lingerUntil(it *item, look, hard, now ctpolicy.Instant) {
	pinAt := ctpolicy.PinAt(hard, hard.Add(-hardPin))
	switch {
	case !pinnable(it.policy, &it.entry) || ctpolicy.Offloaded(&it.entry) || now > pinAt.Add(hardPinSlack):
	case now >= pinAt:
		r.pin(it)
		return
	default:
		look = min(look, pinAt)
	}
	r.schedule.later(it, stepWatch, min(look, hard))
}

// talksOn tells that a flow in its grace does not pause, or not any more. Then the item is put off. One that is forced has no
// grace left, and its entry may have been renewed, with another birth.
func (r *Reaper) talksOn(it *item, sockets []socket) bool {
	now := r.now()
	if it.forced || it.policy.Grace == 0 || it.deadline.Cause != ctpolicy.CauseMaxAge || ctpolicy.Pinned(&it.entry) {
		return false
	}
	_, hard := it.policy.AgeEnds(it.entry.Orig, r.birth(&it.entry, now))
	if now >= hard {
		return false
	}
	pause, exact := shortestPause(sockets)
	if !exact {
		pause = r.Judge.Pause(it.policy, &it.entry)
	}
	if pause >= ctpolicy.GracePause-idleSlack {
		return false
	}
	it.deadline = ctpolicy.Deadline{At: hard, Cause: ctpolicy.CauseMaxAge}
	r.lingerUntil(it, now.Add(ctpolicy.GracePause-pause), hard, now)
	return true
}

// shortestPause is that of the sockets, as far as they show one: over loopback each end has its own.
func shortestPause(sockets []socket) (shortest time.Duration, ok bool) {
	for i := range sockets {
		if pause, has := pauseOf(&sockets[i].Socket); has && (!ok || pause < shortest) {
			shortest, ok = pause, true
		}
	}
	return shortest, ok
}
