package reaper

import (
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// memorySlots is a power of two. The kernel counts cookies up, so that as many sockets in a row don't collide.
const memorySlots = 1 << 15

// birthSlack is how much younger an entry must be than its flow, to be told so.
const birthSlack = 50 * time.Millisecond

// A memory keeps what is known of the sockets of this host by their cookies, in 1.25 MiB: conntrack's table may be flushed.
// Where two open sockets have the same slot, nothing is known of the second: late rather than early.
type memory [memorySlots]trace

// A trace is what is known of one socket. A cookie never belongs to another connection.
type trace struct {
	cookie uint64
	seen   ctpolicy.Instant // when it was listed first
	// start is the birth of the oldest entry that was its own, as conntrack tells it: a step of the clock may be noticed
	// later. 0 if there was none.
	start int64
	// told is the start of the entry for which the true birth is kept.
	told   int64
	round  uint32 // the last sweep that saw the socket
	plain  bool   // its entry was not translated
	client bool   // its entry said that it is the client's
}

// find answers nil when nothing is known of the socket.
func (m *memory) find(cookie uint64) *trace {
	if t := &m[cookie%memorySlots]; t.cookie == cookie && cookie != 0 {
		return t
	}
	return nil
}

// see answers the trace of a socket, perhaps a new one, or nil when there is no room.
func (m *memory) see(cookie uint64, now ctpolicy.Instant, round uint64) (t *trace, known bool) {
	t = &m[cookie%memorySlots]
	known = t.cookie == cookie
	if !known {
		if t.cookie != 0 && t.round+1 >= uint32(round) {
			return nil, false // it may be open still
		}
		*t = trace{cookie: cookie, seen: now}
	}
	t.round = uint32(round)
	return t, known
}

// A dumped remembers the births of the entries that a dump held, in 512 KiB. When there is no room the last one has it.
type dumped [1 << 13]bucket

// A bucket is a line of a CPU's cache.
type bucket [4]struct {
	sum   uint64 // of the tuple, with the lowest bit for translated
	start int64
}

func (d *dumped) reset() { clear(d[:]) }

func (d *dumped) bucket(sum uint64) *bucket { return &d[sum>>1%uint64(len(d))] }

func (d *dumped) add(sum uint64, translated bool, start int64) {
	b := d.bucket(sum)
	free := 0
	for free < len(b)-1 && b[free].start != 0 && b[free].sum|1 != sum|1 {
		free++
	}
	b[free].start = start
	if b[free].sum = sum &^ 1; translated {
		b[free].sum |= 1
	}
}

func (d *dumped) find(sum uint64) (start int64, translated, ok bool) {
	b := d.bucket(sum)
	for i := range b {
		if b[i].start != 0 && b[i].sum|1 == sum|1 {
			return b[i].start, b[i].sum&1 != 0, true
		}
	}
	return 0, false, false
}

// keep remembers the birth of an open flow that may have a socket here. Sockets know nothing of zones.
func (r *Reaper) keep(e *conntrack.Entry) {
	if e.Start == 0 || e.Zone|e.ReplyZone != 0 || e.HasLabel(ctpolicy.LabelRetried) ||
		r.Policies.Direction(e.Orig.Src.Addr(), e.Reply.Src.Addr()) == ctpolicy.Forwarded {
		return
	}
	translated := e.Status&conntrack.StatusNAT != 0 || e.Reply.Src != e.Orig.Dst || e.Reply.Dst != e.Orig.Src
	r.dumped.add(r.seen.sum(e.Orig), translated, e.Start)
}

// remember brings together a socket and the entry that the dump before held for its tuple. The entry is the socket's own only
// if the socket was there before the dump: else it may be that of an earlier connection. It answers what is known of the
// socket, or nil, and whether its entry is younger than that.
func (r *Reaper) remember(s *sockdiag.Socket, tuple conntrack.Tuple) (t *trace, younger bool) {
	t, known := r.memory.see(s.Cookie, r.now(), r.round)
	if !known || r.bound[end{s.Local, s.Remote}] == twoDevices {
		return t, false
	}
	start, translated, ok := r.dumped.find(r.seen.sum(tuple))
	if !ok {
		return t, false
	}
	begun, ok := r.Judge.Timeline.Instant(start)
	switch born := r.born(t); {
	case !ok:
	case begun > born.Add(birthSlack):
		return t, start != t.told
	case t.start == 0 || begun < born:
		t.start, t.plain, t.client = start, !translated, tuple.Src == s.Local
	}
	return t, false
}

// born is when the connection of a socket began, or later.
func (r *Reaper) born(t *trace) ctpolicy.Instant {
	if t.start != 0 {
		if at, ok := r.Judge.Timeline.Instant(t.start); ok {
			return min(at, t.seen)
		}
	}
	return t.seen
}
