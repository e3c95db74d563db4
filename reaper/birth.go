package reaper

import (
	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// birth is when a flow began, or later where that is not known.
func (r *Reaper) birth(e *conntrack.Entry, now ctpolicy.Instant) ctpolicy.Instant {
	return r.Judge.Birth(e, now)
}
