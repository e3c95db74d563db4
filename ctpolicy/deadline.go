package ctpolicy

import (
	"time"

	"curfew/ctpolicy/conntrack"
)

// A Cause is the limit that ends a flow, by the key that sets it.
type Cause string

// The limits.
const (
	CauseMaxAge Cause = "max_age"
	CauseIdle   Cause = "idle"
)

// A Deadline says when a flow's time is up.
type Deadline struct {
	// At is the deadline. That of an idle limit is known to the second only: it is the earliest possible moment.
	At    Instant
	Cause Cause
	// Passed tells that it is certain that the flow's time is up.
	Passed bool
}

// A Judge knows the past and the timeouts that are needed to tell a flow's age and pause.
type Judge struct {
	// Timeline maps birth times to instants.
	Timeline *Timeline
	// Since is the birth of flows whose birth nobody recorded.
	Since Instant
	// Defaults are the namespace's timeouts, that flows have which no policy was in force for at their start.
	Defaults Timeouts
	// Installed are the seconds that the policies' ct timeout objects, also older ones, give to open flows, by name.
	Installed map[string][]uint32
}

// Open tells whether the flow's handshake is complete and data may still flow in at least one direction.
func Open(e *conntrack.Entry) bool { return MidFlow(e) && e.Status&conntrack.StatusAssured != 0 }

// MidFlow is Open, or a flow that conntrack picked up after its handshake and has not seen in both directions yet.
func MidFlow(e *conntrack.Entry) bool {
	if Offloaded(e) {
		return true // its state is not known
	}
	switch e.State {
	case conntrack.StateEstablished, conntrack.StateFinWait, conntrack.StateCloseWait, conntrack.StateLastAck:
		return true
	}
	return false
}

// PickedUp tells that conntrack has seen a flow in both directions but not its handshake, and may forget it early: a third
// packet would assure it.
func PickedUp(e *conntrack.Entry) bool {
	const seen = conntrack.StatusSeenReply
	return MidFlow(e) && e.Status&(seen|conntrack.StatusAssured) == seen
}

// Pinned tells whether the entry's timeout is fixed.
func Pinned(e *conntrack.Entry) bool { return e.Status&conntrack.StatusFixedTimeout != 0 }

// Offloaded tells whether a flowtable forwards the flow. It bypasses our rules then, its timeout can't be fixed, and only
// its birth is known (ctnetlink_fill_info and nf_ct_offload_timeout).
func Offloaded(e *conntrack.Entry) bool { return e.Status&conntrack.StatusOffload != 0 }

// Birth is when the flow began, or later where that is not known: late rather than early.
func (j *Judge) Birth(e *conntrack.Entry, now Instant) Instant {
	if e.Start == 0 {
		return min(j.Since, now)
	}
	if birth, ok := j.Timeline.Instant(e.Start); ok {
		return min(birth, now)
	}
	return now
}

// Deadline is when the time of the policy's flow is up, as seen now. The entry must have been read just now.
func (j *Judge) Deadline(p *Policy, e *conntrack.Entry, now Instant) Deadline {
	return j.DeadlineOf(p, e, j.Birth(e, now), now)
}

// DeadlineOf is Deadline for a flow whose birth is known better than its entry tells.
func (j *Judge) DeadlineOf(p *Policy, e *conntrack.Entry, birth, now Instant) Deadline {
	var d Deadline
	if p.MaxAge > 0 {
		d = j.ageDeadline(p, e, birth, now)
	}
	if p.Idle == 0 || Pinned(e) || d.Passed {
		return d
	}
	if Offloaded(e) {
		// A flowtable gives up a flow that pauses for nf_flowtable_tcp_timeout, 30 s; then the pause can be seen.
		idle := Deadline{now.Add(p.Idle), CauseIdle, false}
		if d.Cause == "" || idle.At < d.At {
			return idle
		}
		return d
	}
	if idle := j.idleDeadline(p, e, now); d.Cause == "" || idle.At < d.At {
		return idle
	}
	return d
}

// idleDeadline reads the pause from the entry: the seconds left of the timeout that the last packet set. The kernel
// cuts fractions, so a flow of base b that reads k has paused for more than b-k-1 and at most b-k seconds.
func (j *Judge) idleDeadline(p *Policy, e *conntrack.Entry, now Instant) Deadline {
	base := j.timeoutBase(p, e)
	left := time.Duration(int64(e.Timeout)-int64(base))*time.Second + p.Idle
	return Deadline{now.Add(left), CauseIdle, left < 0}
}

// Certain tells whether the entry shows how long its flow has paused: it has the policy's ct timeout object. Of others the
// timeout can be anybody's: a sysctl that was changed meanwhile, another ct timeout object, one of an earlier policy.
func (j *Judge) Certain(p *Policy, e *conntrack.Entry) bool {
	if !e.HasLabel(LabelTracked) {
		return false
	}
	_, ok := smallest(e.Timeout, j.Installed[p.Name]...)
	return ok
}

// timeoutBase is the smallest timeout that the last packet can have set. A smaller base means a shorter pause. A flow
// whose ct timeout object is gone has the namespace's timeouts.
func (j *Judge) timeoutBase(p *Policy, e *conntrack.Entry) uint32 {
	if e.HasLabel(LabelTracked) {
		if base, ok := smallest(e.Timeout, j.Installed[p.Name]...); ok {
			// A flowtable gives back a flow with the namespace's timeout (flow_offload_fixup_tcp).
			if usual := j.Defaults[conntrack.TimeoutEstablished]; usual >= e.Timeout {
				base = min(base, usual)
			}
			return base
		}
	}
	base, _ := smallest(e.Timeout, j.Defaults[conntrack.TimeoutOf(e.State)],
		j.Defaults[conntrack.TimeoutRetrans], j.Defaults[conntrack.TimeoutUnack])
	return base
}

// smallest is the smallest of the timeouts that is not below the seconds left, or else the seconds left.
func smallest(left uint32, timeouts ...uint32) (base uint32, ok bool) {
	for _, timeout := range timeouts {
		if timeout >= left && (!ok || timeout < base) {
			base, ok = timeout, true
		}
	}
	if !ok {
		return left, false
	}
	return base, true
}
