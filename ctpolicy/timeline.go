package ctpolicy

import "time"

// stepTolerance is the smallest clock step that is noticed; smaller ones make a flow at most that much too old.
const stepTolerance = 2 * time.Millisecond

// spanEdge widens a span by what its offset may be wrong by, so that a flow that was born at its edge is found in it.
const spanEdge = Instant(2 * stepTolerance)

// A Timeline turns wall-clock times into instants although the wall clock was stepped. It remembers, for every step
// that was noticed, the offset before and after, and the span in which each may have been in force.
type Timeline struct{ spans []span }

// A span says: between from and to the wall clock may have been offset ahead of the boot clock. The moment of a step
// is known only to lie between two readings, so neighbours overlap there.
type span struct {
	from, to Instant
	offset   int64
}

// NewTimeline starts with readings of the past, oldest first.
func NewTimeline(readings ...Reading) *Timeline {
	t := &Timeline{}
	for _, r := range readings {
		t.Observe(r)
	}
	return t
}

// Observe takes a reading and tells whether the clock was stepped since the one before.
func (t *Timeline) Observe(r Reading) (stepped bool) {
	offset := r.Wall - int64(r.Boot)
	if len(t.spans) == 0 {
		t.spans = append(t.spans, span{0, r.Boot, offset})
		return false
	}
	last := &t.spans[len(t.spans)-1]
	known := last.to
	last.to = max(last.to, r.Boot)
	if d := offset - last.offset; d <= int64(stepTolerance) && d >= -int64(stepTolerance) {
		return false
	}
	t.spans = append(t.spans, span{known, r.Boot, offset})
	return true
}

// Instant is the latest instant at which the wall clock may have shown wall: a flow is never taken for older than it
// is. It is not ok when no known offset fits, for example for a time in the future.
func (t *Timeline) Instant(wall int64) (at Instant, ok bool) {
	for _, s := range t.spans {
		if i := Instant(wall - s.offset); i >= s.from-spanEdge && i <= s.to+spanEdge && (!ok || i > at) {
			at, ok = i, true
		}
	}
	return at, ok
}
