package reaper

import (
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// quietSlack is how much a packet can refresh an entry's timeout, of whole seconds, without being noticed.
const quietSlack = 2 * time.Second

// A quiet flow has not been refreshed since it was first seen with some seconds left.
type quiet struct {
	since ctpolicy.Instant
	left  uint32
	round uint64 // the last sweep that saw it
}

// guessed tells that nobody can say how long a flow has paused: its entry does not have the timeout of its policy, and it
// has no socket here.
func (r *Reaper) guessed(p *ctpolicy.Policy, e *conntrack.Entry) bool {
	return p.Idle > 0 && !ctpolicy.Pinned(e) && !ctpolicy.Offloaded(e) && !r.Judge.Certain(p, e) &&
		r.Policies.Direction(e.Orig.Src.Addr(), e.Reply.Src.Addr()) == ctpolicy.Forwarded
}

// observed is the deadline of such a flow: its pause counts from when it was first seen. Late rather than early.
func (r *Reaper) observed(p *ctpolicy.Policy, e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Deadline {
	at := r.quietSince(e, now).Add(p.Idle + quietSlack)
	idle := ctpolicy.Deadline{At: at, Cause: ctpolicy.CauseIdle, Passed: now >= at}
	if p.MaxAge == 0 {
		return idle
	}
	age := *p
	age.Idle = 0
	if d := r.deadline(&age, e, now); d.Passed || d.At <= idle.At {
		return d
	}
	return idle
}

// quietSince watches the entry's countdown: a packet sets it to another value, higher or lower.
func (r *Reaper) quietSince(e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Instant {
	id := identityOf(e)
	q, ok := r.quiet[id]
	then := e.Timeout + uint32(now.Sub(q.since)/time.Second)
	if !ok || then > q.left+1 || then+1 < q.left {
		q = quiet{since: now, left: e.Timeout}
	}
	q.round = r.round
	r.quiet[id] = q
	return q.since
}

// forgetQuiet drops those that no sweep has seen for a while.
func (r *Reaper) forgetQuiet() {
	for id, q := range r.quiet {
		if q.round+2 < r.round {
			delete(r.quiet, id)
		}
	}
}
