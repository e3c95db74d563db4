package reaper

import (
	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// An origin is the birth of a flow of which its entry tells another one. There are few of them.
type origin struct {
	birth ctpolicy.Instant
	round uint64 // the last sweep that saw the entry
}

func (r *Reaper) originOf(e *conntrack.Entry) *origin {
	if len(r.births) == 0 {
		return nil
	}
	o := r.births[identity{e.Orig, e.ID, e.Start, 0}]
	if o != nil {
		o.round = r.round
	}
	return o
}

// bear keeps the birth of an entry's flow.
func (r *Reaper) bear(e *conntrack.Entry, birth ctpolicy.Instant) {
	r.births[identity{e.Orig, e.ID, e.Start, 0}] = &origin{birth, r.round}
}

// birth is when a flow began, or later where that is not known.
func (r *Reaper) birth(e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Instant {
	if o := r.originOf(e); o != nil {
		return min(o.birth, now)
	}
	return r.Judge.Birth(e, now)
}

// deadline is that of the Judge, from the flow's birth. The entry must have been read just now.
func (r *Reaper) deadline(p *ctpolicy.Policy, e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Deadline {
	return r.Judge.DeadlineOf(p, e, r.birth(e, now), now)
}

// forgetBirths drops those of entries that no sweep has seen for a while.
func (r *Reaper) forgetBirths() {
	for id, o := range r.births {
		if o.round+2 < r.round {
			delete(r.births, id)
		}
	}
}
