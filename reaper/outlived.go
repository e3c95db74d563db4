package reaper

import (
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// AdoptOrEnd is Adopt for policies that were in force before. Between two passes of a timer the entry of an idle flow
// expires, and a new one would give it a new life: a socket without an entry whose pause alone is as long as a limit is
// scheduled to be ended instead.
func (r *Reaper) AdoptOrEnd() (adopted int, err error) { return r.adoptUnless(true, r.outlived) }

func (r *Reaper) outlived(s *sockdiag.Socket, tuple conntrack.Tuple, p *ctpolicy.Policy) bool {
	pause, ok := pauseOf(s)
	if !ok {
		return false
	}
	now := r.now()
	quiet := max(now.Add(-pause), r.Judge.Since)
	d := ctpolicy.Deadline{Passed: true}
	for cause, limit := range map[ctpolicy.Cause]time.Duration{ctpolicy.CauseMaxAge: p.AgeLimit(tuple), ctpolicy.CauseIdle: p.Idle} {
		if at := quiet.Add(limit); limit > 0 && (d.Cause == "" || at < d.At) {
			d.At, d.Cause = at, cause
		}
	}
	if now < d.At || r.tracked(tuple) {
		return false
	}
	o := &orphan{tuple: tuple, first: quiet}
	r.orphans[s.Cookie] = o
	r.schedule.add(r.newOrphanItem(s.Cookie, o, p, d))
	return true
}
