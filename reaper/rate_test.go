package reaper

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"curfew/ctpolicy"
)

func rated(maxAge, idle time.Duration, rate uint32) ctpolicy.Policy {
	p := limit(maxAge, idle)
	p.Rate = rate
	return p
}

// Ten thousand items wait; each is looked at once when its time is up, and once when its turn has come.
func TestLane(t *testing.T) {
	const many, rate = 10_000, 300
	rnd := rand.New(rand.NewPCG(3, 4))
	s, policy := newSchedule(), rated(time.Hour, 0, rate)
	for i := range many {
		at := ctpolicy.Instant(1 + rnd.Int64N(int64(time.Second)))
		it := &item{policy: &policy, at: at, deadline: ctpolicy.Deadline{At: at}, step: stepStrike}
		it.entry.Orig = tupleNumber(i)
		s.add(it)
	}
	var now ctpolicy.Instant
	var ends []ctpolicy.Instant
	var last *item
	pops := 0
	for s.next() != nil {
		if at := s.next().at; at > now {
			now = at.Add(time.Duration(rnd.IntN(5)) * time.Millisecond) // timers fire late
		}
		it := s.pop()
		pops++
		if it.deadline.At > now {
			t.Fatal("early")
		}
		if !s.turn(it, now) {
			if it.waits() {
				t.Fatal("it is taken for one that waits for its deadline")
			}
			continue
		}
		s.count(it, now)
		if now > ctpolicy.Instant(2*time.Second) && before(it, last) {
			t.Fatalf("%d after %d", it.deadline.At, last.deadline.At)
		}
		last = it
		ends = append(ends, now)
		s.drop(it)
	}
	if len(ends) != many || pops > 2*many || s.len() != 0 {
		t.Fatalf("%d ends, %d looks, %d left", len(ends), pops, s.len())
	}
	for _, span := range []time.Duration{10 * time.Millisecond, time.Second, 10 * time.Second} {
		most := int((span+rateSlack)*rate/time.Second) + 1
		for i := range ends {
			if j := i + most; j < many && ends[j].Sub(ends[i]) < span {
				t.Fatalf("%d ends in %s", most+1, ends[j].Sub(ends[i]))
			}
		}
	}
	if took := ends[many-1].Sub(ends[0]); took > (many/rate+1)*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestLaneCountsOnce(t *testing.T) {
	s, policy := newSchedule(), rated(time.Hour, 0, 1)
	it := &item{policy: &policy}
	for range 3 {
		if !s.turn(it, 1) {
			t.Fatal("no turn")
		}
		s.count(it, 1)
	}
	if next := s.lane(&policy).free; next > ctpolicy.Instant(time.Second) {
		t.Errorf("the next is free at %d", next)
	}
	if s.turn(&item{policy: &policy}, 1) {
		t.Error("another one has a turn at once")
	}
}

// endsOf are the connections in the order of their ends.
func endsOf(t *testing.T, conns []*conn) []*conn {
	t.Helper()
	for _, c := range conns {
		if c.open() {
			t.Fatalf("%s is open", c)
		}
	}
	return slices.SortedStableFunc(slices.Values(conns), func(a, b *conn) int { return cmp.Compare(a.ended, b.ended) })
}

// mustBePaced fails when more flows ended in a span than the rate allows.
func mustBePaced(t *testing.T, ends []*conn, rate int) {
	t.Helper()
	const lastEnd = 60 * time.Millisecond // from the strike to the end of the other end
	for i := range ends {
		for j := i + 1; j < len(ends); j++ {
			span := ends[j].ended.Sub(ends[i].ended) + rateSlack + lastEnd
			if n := j - i; n > int(span*time.Duration(rate)/time.Second)+1 {
				t.Fatalf("%d ends in %s", n+1, ends[j].ended.Sub(ends[i].ended))
			}
		}
	}
}

// Flows that are due together end one after the other, oldest first; nothing is pinned before.
func TestRate(t *testing.T) {
	const flows, rate, maxAge = 60, 20, 10 * time.Second
	for name, every := range map[string]time.Duration{"busy": 90 * time.Millisecond, "idle": 0} {
		t.Run(name, func(t *testing.T) {
			forPlaces(t, func(t *testing.T, p place) {
				w := newWorld(t, rated(maxAge, 0, rate))
				var conns []*conn
				for i := range flows {
					c := w.open(p, uint16(41000-i), port)
					if every > 0 {
						c.talk(every, time.Hour)
					}
					conns = append(conns, c)
					w.run(time.Millisecond)
				}
				w.run(maxAge - flows*time.Millisecond - time.Millisecond)
				if len(w.changes) != 0 {
					t.Fatalf("changes before the deadline: %v", w.changes)
				}
				calls := 0
				w.hook = func(call string) {
					if call == "Again" {
						calls++
					}
				}
				w.run(6 * time.Second)
				ends := endsOf(t, conns)
				if !slices.Equal(ends, conns) {
					t.Errorf("not in order: %v", ends)
				}
				mustBePaced(t, ends, rate)
				if took := ends[flows-1].ended.Sub(ends[0].ended); took > flows*time.Second/rate+200*time.Millisecond {
					t.Errorf("it took %s", took)
				}
				if calls > 12*flows {
					t.Errorf("%d looks at %d flows", calls, flows)
				}
				if len(w.results) != flows {
					t.Errorf("%d results", len(w.results))
				}
				w.run(3 * time.Second)
				w.drained()
			})
		})
	}
}

// A new reaper finds the backlog in another order, and goes on in that of the deadlines.
func TestRateAfterARestart(t *testing.T) {
	const flows, rate, maxAge = 600, 50, 10 * time.Second
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, rated(maxAge, 0, rate))
		w.cost = 10 * time.Microsecond
		var conns []*conn
		for i := range flows {
			conns = append(conns, w.open(p, uint16(10000+i), port))
			w.run(time.Millisecond)
		}
		rand.New(rand.NewPCG(1, 1)).Shuffle(flows, func(i, j int) { w.entries[i], w.entries[j] = w.entries[j], w.entries[i] })
		w.run(maxAge + 2*time.Second)
		w.kill()
		w.run(500 * time.Millisecond)
		w.start()
		w.run(30 * time.Second)
		ends := endsOf(t, conns)
		if !slices.Equal(ends, conns) {
			t.Error("not in order")
		}
		// What was struck and not forgotten yet when the reaper died is reported again, and takes no turn.
		if took := ends[flows-1].ended.Sub(ends[0].ended); took > flows*time.Second/rate+time.Second {
			t.Errorf("it took %s", took)
		}
		w.run(3 * time.Second)
		w.drained()
	})
}

// The entry of an idle flow outlives its backlog, and one that talks while it waits is spared.
func TestRateOfAnIdleLimit(t *testing.T) {
	const flows, idle = 20, 10 * time.Second
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, rated(0, idle, 2))
		var conns []*conn
		for i := range flows {
			conns = append(conns, w.open(p, uint16(40000+i), port))
		}
		w.run(idle + 2*time.Second)
		open := slices.DeleteFunc(slices.Clone(conns), func(c *conn) bool { return !c.open() })
		if len(open) < flows-6 || len(open) > flows-3 {
			t.Fatalf("%d are open", len(open))
		}
		spared := open[len(open)-1]
		spared.send(spared.client, data, "")
		w.run(idle - 1500*time.Millisecond)
		if !spared.established() {
			t.Error("a flow that talked is ended")
		}
		w.run(idle)
		mustBePaced(t, endsOf(t, conns), 2)
		for _, c := range conns {
			if c.ended.Sub(c.talked) < idle {
				t.Errorf("%s ended after a pause of %s", c, c.ended.Sub(c.talked))
			}
		}
	})
}

// Flows that close by themselves while they wait take no turn.
func TestRateIsNotSpentOnClosedFlows(t *testing.T) {
	w := newWorld(t, rated(10*time.Second, 0, 1))
	var conns []*conn
	for i := range 30 {
		conns = append(conns, w.open(serverHere, uint16(40000+i), port))
		w.run(time.Millisecond)
	}
	w.run(10 * time.Second)
	for _, c := range conns[1:29] {
		c.shut()
	}
	w.run(1100 * time.Millisecond)
	if conns[0].open() || conns[29].open() || len(w.results) != 2 {
		t.Errorf("open: %v, %v; results %+v", conns[0].open(), conns[29].open(), w.results)
	}
	w.run(3 * time.Second)
	w.drained()
}

func TestRateOfPinAllAndEndAll(t *testing.T) {
	const flows, rate = 30, 10
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, rated(20*time.Second, 0, rate))
		var conns []*conn
		for i := range flows {
			conns = append(conns, w.open(p, uint16(40000+i), port))
		}
		if without, err := w.r.PinAll(); without != flows || err != nil || w.r.Scheduled() != 0 {
			t.Errorf("%d without a pin, %v, %d scheduled", without, err, w.r.Scheduled())
		}
		for _, c := range conns {
			c.mayEnd = true
		}
		if err := w.r.EndAll(); err != nil {
			t.Fatal(err)
		}
		w.drain()
		ends := endsOf(t, conns)
		mustBePaced(t, ends, rate)
		if took := ends[flows-1].ended.Sub(ends[0].ended); took < (flows-2)*time.Second/rate-rateSlack {
			t.Errorf("it took %s", took)
		}
	})
}

// A flow that closes by itself before EndAll comes to it is left alone.
func TestRateOfEndAllOnAClosedFlow(t *testing.T) {
	w := newWorld(t, rated(20*time.Second, 0, 1))
	first, second := w.open(forwarded, 40000, port), w.open(forwarded, 40001, port)
	first.mayEnd, second.mayEnd = true, true
	if err := w.r.EndAll(); err != nil {
		t.Fatal(err)
	}
	w.run(500 * time.Millisecond)
	left := first
	if !first.open() {
		left = second
	}
	left.shut()
	before := len(w.changes)
	w.run(time.Second)
	if len(w.results) != 1 || len(w.changes) != before {
		t.Errorf("results %+v, changes %v", w.results, w.changes[before:])
	}
}

// Sockets without an entry obey the rate as well.
func TestRateOfOrphans(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, rated(10*time.Second, 0, 2))
		var conns []*conn
		for i := range 10 {
			c := w.open(p, uint16(40000+i), port)
			c.untracked = true
			conns = append(conns, c)
		}
		w.flush()
		w.run(10*time.Second - time.Millisecond)
		if len(w.results) != 0 {
			t.Fatal("early")
		}
		w.run(8 * time.Second)
		mustBePaced(t, endsOf(t, conns), 2)
		w.drained()
	}
}

// A policy that only reports ends nothing, so it needs no rate.
func TestRateOfReports(t *testing.T) {
	policy := rated(10*time.Second, 0, 1)
	policy.Mode = ctpolicy.Report
	w := newWorld(t, policy)
	for i := range 10 {
		w.open(serverHere, uint16(40000+i), port)
	}
	w.run(11 * time.Second)
	if len(w.results) != 10 {
		t.Errorf("%d results", len(w.results))
	}
}

func BenchmarkLane(b *testing.B) {
	const many = 10_000
	s, policy := newSchedule(), rated(time.Hour, 0, 1000)
	for i := range many {
		it := &item{policy: &policy, deadline: ctpolicy.Deadline{At: ctpolicy.Instant(i * 7919 % many)}}
		it.entry.Orig = tupleNumber(i)
		s.add(it)
		s.turn(s.pop(), -1)
	}
	now := ctpolicy.Instant(0)
	b.ReportAllocs()
	for b.Loop() {
		now = max(now, s.next().at)
		it := s.pop()
		if !s.turn(it, now) {
			b.Fatal("no turn")
		}
		s.count(it, now)
		it.counted = false
		it.deadline.At += many
		s.turn(it, now)
	}
}
