package ctpolicy

import (
	"time"

	"curfew/ctpolicy/conntrack"
)

// GracePause is the pause that ends a flow in its grace. An entry counts whole seconds, so it shows no shorter one.
const GracePause = time.Second

// AgeEnds is when max_age ends the flow with this original tuple: at its first pause from soft on, and at hard in any case.
// Without Grace both are the same.
func (p *Policy) AgeEnds(orig conntrack.Tuple, birth Instant) (soft, hard Instant) {
	soft = birth.Add(p.AgeLimit(orig))
	return soft, soft.Add(p.Grace)
}

// ageDeadline is what max_age says. In its grace a flow that has not paused yet may do so at any time: then At is now.
func (j *Judge) ageDeadline(p *Policy, e *conntrack.Entry, birth, now Instant) Deadline {
	soft, hard := p.AgeEnds(e.Orig, birth)
	switch {
	case Pinned(e):
		// The kernel enforces what was pinned, and that can't be changed any more.
		at := min(hard, PinnedDeadline(e, now))
		return Deadline{at, CauseMaxAge, now >= at}
	case now >= hard:
		return Deadline{hard, CauseMaxAge, true}
	case now < soft:
		return Deadline{soft, CauseMaxAge, false}
	}
	pause := j.Pause(p, e)
	if pause < GracePause {
		return Deadline{now, CauseMaxAge, false}
	}
	return Deadline{max(soft, now.Add(GracePause-pause)), CauseMaxAge, true}
}

// Pause is how long a flow has paused at least, as far as its entry shows that for certain: the seconds since its timeout
// was set, less the fraction that the kernel cuts.
func (j *Judge) Pause(p *Policy, e *conntrack.Entry) time.Duration {
	if Pinned(e) || Offloaded(e) || !j.Certain(p, e) {
		return 0
	}
	base := j.timeoutBase(p, e)
	return time.Duration(max(base, e.Timeout+1)-e.Timeout-1) * time.Second
}
