package reaper

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"curfew/reaper/challenge"
)

const (
	// ruleDelay is how long after the deadline the rule of a pin is certain to answer.
	ruleDelay = 20 * time.Millisecond
	// confirmAfter is when to look first whether a challenge was answered.
	confirmAfter = 25 * time.Millisecond
	// closedSlack is how long before its deadline, which is known to the second only, a flow can have been reset. An
	// earlier flow on the same tuple was reset longer ago: the shortest limit is a second.
	closedSlack = 900 * time.Millisecond
)

// challenge makes each end that nobody has told yet show its numbers: the answer meets the rule, which resets it.
func (r *Reaper) challenge(it *item) {
	r.look(it)
	switch {
	case it.settled():
		r.forget(it)
	case it.tries == challenge.Attempts:
		it.settle(MethodNone, "it did not answer; perhaps it is gone")
		r.survived(it)
	default:
		r.send(it)
	}
}

// send makes one attempt. What one attempt fails to send, the next one may.
func (r *Reaper) send(it *item) {
	for i, end := range ends(&it.entry) {
		if it.results[i].Method != "" {
			continue
		}
		it.results[i].Reason = ""
		if err := r.Challenger.Send(end.remote, end.local, it.tries); err != nil {
			it.results[i].Reason = sendReason(err)
			r.Log.Debug("challenge", "flow", it.entry.Orig, "error", err)
		}
	}
	it.tries++
	it.sent = r.now()
	r.schedule.later(it, stepConfirm, it.sent.Add(confirmAfter))
}

func sendReason(err error) string {
	if errors.Is(err, unix.EPERM) {
		return "a firewall rule of this host drops our challenges"
	}
	return err.Error()
}

// confirm looks whether a challenge was answered, soon and then less and less often.
func (r *Reaper) confirm(it *item) {
	r.look(it)
	now, again := r.now(), it.sent.Add(challenge.Interval)
	switch {
	case it.settled():
		r.forget(it)
	case now < again:
		r.schedule.later(it, stepConfirm, min(again, it.sent.Add(2*now.Sub(it.sent))))
	default:
		r.challenge(it)
	}
}

// look finds out which ends are closed. An end that is this host's has no socket here (any more).
func (r *Reaper) look(it *item) {
	for i, end := range ends(&it.entry) {
		if it.results[i].Method != "" {
			continue
		}
		ago, ok, err := r.Table.Closed(end.local, end.remote)
		switch {
		case err != nil:
			it.results[i].Reason = err.Error()
		case ok && r.now().Add(-ago) >= it.deadline.At.Add(-closedSlack):
			it.results[i] = EndResult{Method: MethodRule}
		}
		if it.results[i].Method == "" && r.Local(end.local.Addr()) {
			it.results[i] = EndResult{Method: MethodGone}
		}
	}
}
