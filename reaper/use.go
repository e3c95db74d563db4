package reaper

import (
	"container/heap"
	"fmt"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// Use puts other policies in force, between two calls of Run. Flows that only wait for their deadline are judged anew by
// the next sweep. Ends that have begun go on as they were, but one that is to be tried again only while its flow is
// covered. What is known of the clock, of ages and of pauses stays; of the judge all but its Timeline counts.
func (r *Reaper) Use(policies *ctpolicy.Matcher, judge *ctpolicy.Judge) {
	anew := *judge
	anew.Timeline = r.Judge.Timeline
	r.Policies, r.Judge = policies, &anew
	r.swept = false // the rules may have picked flows up

	old := r.schedule
	r.schedule = newSchedule()
	for _, it := range old.queue {
		if !r.goesOn(it) {
			continue
		}
		p := *it.policy // not the whole of its Matcher
		it.policy = &p
		r.schedule.known[it.identity()] = it
		r.schedule.queue = append(r.schedule.queue, it)
	}
	heap.Init(&r.schedule.queue)
}

// goesOn tells that an end has begun. A survivor, which will be struck again, and a flow that EndAll has scheduled must be
// covered still.
func (r *Reaper) goesOn(it *item) bool {
	switch {
	case it.step == stepChallenge, it.step == stepForget:
		return true
	case it.step == stepStrike && (it.reported || it.deadline.Cause == CauseExisting):
		p := r.Policies.Flow(&it.entry)
		return p != nil && p.Ends()
	}
	return false
}

// PinnedEarly counts the covered flows that will be ended before the time that the policies in force give them: they were
// pinned for earlier ones, and a pin can't be changed.
func (r *Reaper) PinnedEarly() (count int, err error) {
	r.observeClock()
	now := r.now()
	pinned := conntrack.Filter{Status: conntrack.StatusFixedTimeout, StatusMask: conntrack.StatusFixedTimeout}
	err = r.Flows.Dump(pinned, func(e *conntrack.Entry) error {
		if p := r.Policies.Flow(e); p != nil && ctpolicy.MidFlow(e) && r.pinnedEarly(p, e, now) {
			count++
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("count what is pinned: %w", err)
	}
	return count, err
}

// pinnedEarly takes a flow without max_age, whose pause a pin hides, for one that could live on.
func (r *Reaper) pinnedEarly(p *ctpolicy.Policy, e *conntrack.Entry, now ctpolicy.Instant) bool {
	deadline := ctpolicy.PinnedDeadline(e, now)
	if !ctpolicy.Pinned(e) || deadline.Add(-time.Second) <= now {
		return false // it is being ended
	}
	_, hard := p.AgeEnds(e.Orig, r.birth(e, now))
	return p.MaxAge == 0 || deadline < hard
}
