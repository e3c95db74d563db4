package reaper

import (
	"container/heap"
	"time"

	"curfew/ctpolicy"
)

// rateSlack is how far the ends of a policy's flows may lag behind its rate and catch up at once: a timer that fires
// late, or a sweep, takes nothing away from the rate. So in any span at most a twentieth of the rate more is ended.
const rateSlack = 50 * time.Millisecond

// A lane paces the ends of the flows of a policy with a rate (the generic cell rate algorithm), and holds those whose
// time is up and whose turn has not come.
type lane struct {
	policy  *ctpolicy.Policy
	free    ctpolicy.Instant // when the next flow may be ended
	waiting backlog
}

// every is the time between two ends.
func (l *lane) every() time.Duration {
	rate := time.Duration(l.policy.Rate)
	return (time.Second + rate - 1) / rate
}

// head is the item whose turn is next, or nil.
func (l *lane) head() *item {
	if len(l.waiting) == 0 {
		return nil
	}
	it := l.waiting[0]
	it.at = l.free
	return it
}

func (s *schedule) lane(p *ctpolicy.Policy) *lane {
	for _, l := range s.lanes {
		if l.policy == p {
			return l
		}
	}
	l := &lane{policy: p}
	s.lanes = append(s.lanes, l)
	return l
}

// paced tells that an item needs a turn to be ended. One that is pinned does not: an earlier reaper has struck it, or the rule
// ends it anyway.
func paced(it *item) bool {
	return it.policy.Rate > 0 && it.policy.Enforced() && !it.counted && !ctpolicy.Pinned(&it.entry)
}

// turn tells that a popped item, whose time is up, may be ended now as far as its policy's rate goes. Otherwise it is put back
// until its turn: the item with the earliest deadline comes first.
func (s *schedule) turn(it *item, now ctpolicy.Instant) bool {
	if !paced(it) {
		return true
	}
	l := s.lane(it.policy)
	if !s.halted && l.free <= now && (len(l.waiting) == 0 || !before(l.waiting[0], it)) {
		return true
	}
	it.step, it.lane = stepStrike, l
	heap.Push(&l.waiting, it)
	return false
}

// count takes the end of an item off its policy's rate. What is tried again counts once.
func (s *schedule) count(it *item, now ctpolicy.Instant) {
	if !paced(it) {
		return
	}
	it.counted = true
	l := s.lane(it.policy)
	l.free = max(l.free, now.Add(-rateSlack)).Add(l.every())
}

// before tells which of two items of a lane comes first.
func before(a, b *item) bool {
	if a.deadline.At != b.deadline.At {
		return a.deadline.At < b.deadline.At
	}
	return a.birth < b.birth
}

// A backlog is a heap of items by deadline.
type backlog []*item

func (b backlog) Len() int           { return len(b) }
func (b backlog) Less(i, j int) bool { return before(b[i], b[j]) }
func (b backlog) Swap(i, j int)      { b[i], b[j] = b[j], b[i] }

// Push is for package heap.
func (b *backlog) Push(x any) { *b = append(*b, x.(*item)) }

// Pop is for package heap.
func (b *backlog) Pop() any { return (*queue)(b).Pop() }
