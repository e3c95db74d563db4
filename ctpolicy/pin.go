package ctpolicy

import (
	"time"

	"curfew/ctpolicy/conntrack"
)

// pinSlack makes the rule start just after the deadline, never a jiffy before: the kernel cuts fractions of a jiffy.
const pinSlack = 10 * time.Millisecond

// PinAt is when to pin a flow: the first moment from which the deadline, plus the slack, is whole seconds away.
// CTA_TIMEOUT counts whole seconds.
func PinAt(deadline, now Instant) Instant {
	if deadline <= now {
		return now
	}
	return now.Add(deadline.Sub(now)%time.Second + pinSlack)
}

// PinTimeout is the timeout, in seconds, of a pin sent now: the time left, rounded up, and the window. It is not ok
// when the kernel can't count so far.
func PinTimeout(deadline, now Instant) (seconds uint32, ok bool) {
	left := max(0, deadline.Sub(now))
	timeout := (left + time.Second - 1).Truncate(time.Second) + Window
	return uint32(timeout / time.Second), timeout <= maxTimeout
}

// PinnedDeadline is the latest deadline that a pinned entry can have, as read now.
func PinnedDeadline(e *conntrack.Entry, now Instant) Instant {
	return now.Add(time.Duration(e.Timeout+1)*time.Second - Window)
}
