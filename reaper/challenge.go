package reaper

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/reaper/challenge"
)

const (
	// ruleDelay is how long after the deadline the rule of a pin is certain to answer.
	ruleDelay = 20 * time.Millisecond
	// lookAfter is when to look first whether a challenge was answered.
	lookAfter = 25 * time.Millisecond
	// closedSlack is how long before its deadline, which may be known to the second only, a flow can have been reset. An
	// earlier flow on the same tuple was reset longer ago: the shortest limit is a second.
	closedSlack = 900 * time.Millisecond
)

// challenge makes the ends that are not known to have ended show their numbers. The answer to a challenge meets the
// rule, which resets the end that sent it. Between two challenges it looks again and again, with doubling pauses.
func (r *Reaper) challenge(it *item) {
	r.settle(it)
	now := r.now()
	again := it.sent.Add(challenge.Interval)
	switch {
	case it.settled():
		r.forget(it)
	case it.asked > 0 && now < again:
		r.schedule.later(it, stepChallenge, min(again, now.Add(max(lookAfter, now.Sub(it.sent)))))
	case it.asked == challenge.Attempts:
		r.survived(it)
	default:
		r.ask(it)
	}
}

// settle finds out which ends have ended. It comes after a strike that has found no socket here.
func (r *Reaper) settle(it *item) {
	for i, end := range ends(&it.entry) {
		o := &it.outcomes[i]
		if !o.open() {
			continue
		}
		closed, err := r.closed(it, end)
		switch {
		case closed:
			o.method = MethodRule
		case r.Local(end.local.Addr()):
			r.settleLocal(it, o)
		case err != nil && o.asked:
			o.reason = fmt.Sprintf("may have ended, but the rules can't tell: %v", err)
		}
	}
}

// settleLocal is for an end that has no socket here.
func (r *Reaper) settleLocal(it *item, o *outcome) {
	// In another zone it may be somebody else's, with an address of this host.
	if other, err := r.inZoneZero(&it.entry); (other || err != nil) && ctpolicy.MidFlow(&it.entry) {
		o.reason = "can't be told from a connection in zone 0 with its addresses"
		return
	}
	o.method = MethodGone
}

// closed tells that the rules have seen the end of a client or server after the deadline. What they remember may be of an
// earlier flow on the same ports.
func (r *Reaper) closed(it *item, e end) (bool, error) {
	ago, ok, err := r.Table.Closed(e.local, e.remote)
	if err != nil {
		r.Log.Debug("ask the rules", "flow", it.entry.Orig, "error", err)
		return false, err
	}
	at := r.now().Add(-ago)
	if !ok || at < max(it.deadline.At.Add(-closedSlack), it.birth) {
		return false, nil
	}
	it.ended = max(it.ended, at)
	return true, nil
}

// ask sends a challenge to each end that may be open.
func (r *Reaper) ask(it *item) {
	if err := r.arm(it); err != nil {
		r.unreadable(it, err)
		return
	}
	for i, end := range ends(&it.entry) {
		o := &it.outcomes[i]
		if !o.open() || r.Local(end.local.Addr()) {
			continue
		}
		err := r.Challenger.Send(end.remote, end.local, it.asked)
		switch {
		case err == nil:
			o.asked, o.reason = true, "did not answer"
		case !o.asked:
			o.reason = unsent(err)
		}
		if err != nil {
			r.Log.Debug("challenge", "flow", it.entry.Orig, "error", err)
		}
	}
	it.asked++
	it.sent = r.now()
	r.schedule.later(it, stepChallenge, it.sent.Add(lookAfter))
}

func unsent(err error) string {
	if errors.Is(err, unix.EPERM) {
		return fmt.Sprintf("can't be reached: a firewall on this host drops our challenges (%v)", err)
	}
	return fmt.Sprintf("can't be reached: %v", err)
}
