package reaper

import (
	"container/heap"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A step is what is to be done next for a scheduled flow.
type step int

const (
	stepPin       step = iota // fix the deadline in the kernel
	stepWatch                 // look whether the idle limit has passed
	stepStrike                // end it
	stepChallenge             // see which ends have ended, and make the others show their numbers
	stepForget                // delete its entry
)

// An item is a flow whose time is nearly up.
type item struct {
	entry    conntrack.Entry
	cookie   uint64 // of a socket without an entry; else 0
	policy   *ctpolicy.Policy
	deadline ctpolicy.Deadline
	birth    ctpolicy.Instant

	// forced says to do the step without judging the flow again, and then to leave it to the kernel.
	forced   bool
	step     step
	at       ctpolicy.Instant // when to do it
	tries    int              // that failed
	rule     ctpolicy.Instant // from when the rule answers, if this process has pinned the flow; else 0
	asked    int              // challenges
	sent     ctpolicy.Instant // the last one
	outcomes [2]outcome       // of the client and the server
	ended    ctpolicy.Instant // when the rules have reset the last end, as far as they have
	reported bool             // as a survivor
	lane     *lane            // in which it waits for its turn; else nil
	counted  bool             // in its policy's rate
}

// identity is what makes a flow the same flow; the tuple alone may be used again.
type identity struct {
	tuple  conntrack.Tuple
	id     uint32
	start  int64
	cookie uint64
}

// waits tells that nothing is to be done but to wait for the deadline.
func (it *item) waits() bool {
	if it.lane != nil {
		return false // its time is up
	}
	return it.step == stepWatch || (it.step == stepStrike && it.tries == 0)
}

func (it *item) identity() identity {
	return identity{it.entry.Orig, it.entry.ID, it.entry.Start, it.cookie}
}

// identityOf is that of an entry's flow.
func identityOf(e *conntrack.Entry) identity { return identity{e.Orig, e.ID, e.Start, 0} }

// A schedule holds the flows that are due within lead, first things first.
type schedule struct {
	queue queue
	lanes []*lane // of the policies with a rate, as far as their flows have come
	known map[identity]*item
	// halted says that nobody gets a turn: not all who wait are known yet.
	halted bool
}

func newSchedule() *schedule { return &schedule{known: map[identity]*item{}} }

// add schedules a flow, unless it is scheduled already.
func (s *schedule) add(it *item) {
	if _, ok := s.known[it.identity()]; ok {
		return
	}
	s.known[it.identity()] = it
	heap.Push(&s.queue, it)
}

// find is the item of an entry's flow, or nil. It does not allocate.
func (s *schedule) find(e *conntrack.Entry) *item { return s.known[identityOf(e)] }

// has tells whether the flow of an entry is scheduled.
func (s *schedule) has(e *conntrack.Entry) bool { return s.find(e) != nil }

// next is the item to be served first, or nil.
func (s *schedule) next() (first *item) {
	if len(s.queue) > 0 {
		first = s.queue[0]
	}
	if s.halted {
		return first
	}
	for _, l := range s.lanes {
		if it := l.head(); it != nil && (first == nil || it.at < first.at) {
			first = it
		}
	}
	return first
}

// pop takes the first item out; it stays known until drop.
func (s *schedule) pop() *item {
	it := s.next()
	if it.lane == nil {
		return heap.Pop(&s.queue).(*item)
	}
	heap.Pop(&it.lane.waiting)
	it.lane = nil
	return it
}

// later puts a popped item back.
func (s *schedule) later(it *item, step step, at ctpolicy.Instant) {
	it.step, it.at = step, at
	heap.Push(&s.queue, it)
}

// become gives a popped item the entry that has replaced its own.
func (s *schedule) become(it *item, anew *conntrack.Entry) {
	s.drop(it)
	it.entry = *anew
	s.known[it.identity()] = it
}

// drop forgets a popped item.
func (s *schedule) drop(it *item) { delete(s.known, it.identity()) }

// len is the number of flows in the schedule.
func (s *schedule) len() int { return len(s.known) }

// A queue is a heap of items by time.
type queue []*item

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
}

// Push is for package heap.
func (q *queue) Push(x any) {
	it := x.(*item)
	*q = append(*q, it)
}

// Pop is for package heap.
func (q *queue) Pop() any {
	last := len(*q) - 1
	it := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return it
}
