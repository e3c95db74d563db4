package reaper

import (
	"time"

	"curfew/ctpolicy/conntrack"
	"curfew/reaper/challenge"
)

const (
	// ruleDelay is how long after the deadline the rule of a pin is certain to answer.
	ruleDelay = 20 * time.Millisecond
	// confirmAfter is when to look first whether a challenge was answered.
	confirmAfter = 25 * time.Millisecond
)

// challenge tells the remote ends of a flow that has no socket here (any more): the rule may have reset this host's
// socket, which tells the other side nothing. The answer to a challenge meets the rule, and the kernel sets the entry
// to CLOSE when the rule resets it (nf_ct_set_closing; seen on Linux 6.18).
func (r *Reaper) challenge(it *item) {
	remote := r.remoteEnds(&it.entry)
	if len(remote) == 0 {
		r.forget(it, MethodGone)
		return
	}
	if it.tries == challenge.Attempts && it.widow {
		r.forget(it, MethodGone)
		return
	}
	if it.tries == challenge.Attempts {
		r.survived(it, "the other end did not answer; perhaps it is gone")
		return
	}
	if it.tries == 0 && it.entry.State == conntrack.StateClose {
		if err := r.Flows.MarkWaiting(&it.entry); err != nil {
			r.unreadable(it, err)
			return
		}
	}
	for _, end := range remote {
		if err := r.Challenger.Send(end.remote, end.local, it.tries); err != nil {
			r.Log.Debug("challenge", "flow", it.entry.Orig, "error", err)
		}
	}
	it.tries++
	it.sent = r.now()
	r.schedule.later(it, stepConfirm, it.sent.Add(confirmAfter))
}

// confirm looks whether a challenge was answered.
func (r *Reaper) confirm(it *item) {
	again := it.sent.Add(challenge.Interval)
	switch {
	case it.entry.State == conntrack.StateClose:
		r.forget(it, MethodRule)
	case r.now() < again:
		r.schedule.later(it, stepConfirm, again)
	default:
		r.challenge(it)
	}
}

// remoteEnds are the ends of a flow that are not this host.
func (r *Reaper) remoteEnds(e *conntrack.Entry) []end {
	var remote []end
	for _, end := range ends(e) {
		if !r.Local(end.local.Addr()) {
			remote = append(remote, end)
		}
	}
	return remote
}
