package reaper

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

func tupleNumber(i int) conntrack.Tuple {
	addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	return conntrack.Tuple{Src: addrPort(addr, 40000), Dst: addrPort(serverAddr, port)}
}

// Items come out in order, however often they are put back, and none is lost or comes twice.
func TestSchedule(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	s := newSchedule()
	for i := range 1000 {
		it := &item{at: ctpolicy.Instant(rnd.IntN(500))}
		it.entry.Orig = tupleNumber(i)
		if s.has(&it.entry) {
			t.Fatal("known before it is added")
		}
		s.add(it)
		s.add(&item{entry: it.entry, at: -1}) // twice
		if !s.has(&it.entry) || s.find(&it.entry) != it {
			t.Fatal("not known")
		}
	}
	if s.len() != 1000 {
		t.Fatalf("%d items", s.len())
	}
	last, left := ctpolicy.Instant(0), 1000
	for s.next() != nil {
		first := s.next()
		it := s.pop()
		if it != first || it.at < last {
			t.Fatalf("%d comes after %d", it.at, last)
		}
		last = it.at
		if rnd.IntN(3) == 0 {
			s.later(it, stepWatch, it.at.Add(time.Duration(rnd.IntN(100))))
			continue
		}
		s.drop(it)
		if left--; s.len() != left || s.has(&it.entry) {
			t.Fatalf("%d items, want %d", s.len(), left)
		}
	}
	if left != 0 {
		t.Errorf("%d items are lost", left)
	}
}

// Two flows that use a tuple one after the other, and a socket without an entry, are three.
func TestScheduleTellsFlowsApart(t *testing.T) {
	s := newSchedule()
	for _, it := range []*item{
		{},
		{entry: conntrack.Entry{ID: 1}},
		{entry: conntrack.Entry{ID: 1, Start: 1}},
		{entry: conntrack.Entry{Start: 1}},
		{cookie: 7},
		{cookie: 8},
	} {
		s.add(it)
	}
	if s.len() != 6 || s.has(&conntrack.Entry{ID: 2}) {
		t.Errorf("%d items", s.len())
	}
}

func TestSeen(t *testing.T) {
	const many = 100_000
	var s seen
	for range 3 {
		s.reset()
		for i := range many {
			s.add(tupleNumber(i))
		}
		wrong := 0
		for i := range many {
			if !s.has(tupleNumber(i)) {
				t.Fatalf("%s is overlooked", tupleNumber(i))
			}
			if s.has(tupleNumber(many + i)) {
				wrong++
			}
		}
		if wrong > many/1000 {
			t.Errorf("%d of %d others are taken for seen", wrong, many)
		}
	}
	s.reset()
	if s.has(tupleNumber(1)) {
		t.Error("a tuple is seen after a reset")
	}
}

// IPv6, and the mapped form of an IPv4 address, which is the same tuple.
func TestSeenFamilies(t *testing.T) {
	var s seen
	s.reset()
	six := conntrack.Tuple{Src: netip.MustParseAddrPort("[fd00::1]:1"), Dst: netip.MustParseAddrPort("[fd00::2]:2")}
	s.add(six)
	if !s.has(six) || s.has(reversed(six)) {
		t.Error("an IPv6 tuple is overlooked, or its reverse seen")
	}
}

func TestNoAllocations(t *testing.T) {
	w := newWorld(t, limit(time.Hour, 0))
	covered := w.open(bothHere, 40000, port)
	other := w.open(bothHere, 40001, 80)
	between := w.open(forwarded, 40004, 80)
	closed := w.open(bothHere, 40002, port)
	closed.shut()
	due := w.open(bothHere, 40003, port)
	w.run(time.Second)
	e := w.read(w.find(due.tuple))
	w.r.schedule.add(&item{entry: e, policy: due.policy, at: w.boot.Add(time.Hour)})
	for name, c := range map[string]*conn{"covered": covered, "uncovered": other, "forwarded": between, "closed": closed, "scheduled": due} {
		e, now := w.read(w.find(c.tuple)), w.r.now()
		if name == "scheduled" {
			now = now.Add(time.Hour - time.Minute)
		}
		if n := testing.AllocsPerRun(100, func() { w.r.consider(&e, now) }); n != 0 {
			t.Errorf("a %s flow costs %v allocations", name, n)
		}
	}
	if n := testing.AllocsPerRun(100, func() { w.r.seen.add(covered.tuple); _ = w.r.seen.has(other.tuple) }); n != 0 {
		t.Errorf("the filter costs %v allocations", n)
	}
	if w.r.Scheduled() != 1 {
		t.Errorf("%d scheduled", w.r.Scheduled())
	}
}

func BenchmarkConsider(b *testing.B) {
	w := newWorld(b, limit(time.Hour, 10*time.Minute))
	w.sweep() // which makes the filter
	for name, dst := range map[string]uint16{"covered": port, "uncovered": 80} {
		e := w.read(w.find(w.open(bothHere, 40000, dst).tuple))
		now := w.r.now()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.r.consider(&e, now)
			}
		})
	}
}

func BenchmarkSchedule(b *testing.B) {
	const many = 10_000
	s := newSchedule()
	items := make([]*item, many)
	for i := range items {
		items[i] = &item{at: ctpolicy.Instant(i * 7919 % many)}
		items[i].entry.Orig = tupleNumber(i)
		s.add(items[i])
	}
	b.ReportAllocs()
	for b.Loop() {
		it := s.pop()
		s.drop(it)
		it.at += many
		s.add(it)
	}
}

func BenchmarkSeen(b *testing.B) {
	var s seen
	s.reset()
	t := tupleNumber(1)
	b.Run("add", func(b *testing.B) {
		for b.Loop() {
			s.add(t)
		}
	})
	b.Run("has", func(b *testing.B) {
		for b.Loop() {
			_ = s.has(t)
		}
	})
	b.Run("reset", func(b *testing.B) {
		for b.Loop() {
			s.reset()
		}
	})
}
