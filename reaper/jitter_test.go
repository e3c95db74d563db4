package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
)

func jittered(maxAge time.Duration, percent int) ctpolicy.Policy {
	p := limit(maxAge, 0)
	p.Jitter = percent
	return p
}

// Flows that begin together end apart, each at its own age, also when the reaper is another one by then.
func TestJitter(t *testing.T) {
	const maxAge, flows = 20 * time.Second, 50
	forPlaces(t, func(t *testing.T, p place) {
		policy := jittered(maxAge, 50)
		w := newWorld(t, policy)
		var conns []*conn
		for i := range flows {
			conns = append(conns, w.open(p, uint16(40000+2*i), port))
		}
		for _, c := range conns[:10] {
			c.talk(50*time.Millisecond, time.Hour)
		}
		w.run(maxAge - time.Second)
		w.kill()
		w.run(time.Second)
		w.start()
		w.run(12 * time.Second)
		var first, last time.Duration = time.Hour, 0
		for _, c := range conns {
			age := policy.AgeLimit(c.tuple)
			slack := 60 * time.Millisecond
			if age < maxAge+100*time.Millisecond { // while nobody was there
				slack += time.Second
			}
			ended(t, c, age, slack)
			first, last = min(first, age), max(last, age)
		}
		if len(w.results) != flows || last-first < 8*time.Second {
			t.Errorf("%d results, from %s to %s", len(w.results), first, last)
		}
		for _, r := range w.results {
			if r.Limit != ctpolicy.CauseMaxAge || r.Late < 0 || r.Late > 1100*time.Millisecond {
				t.Errorf("result %+v", r)
			}
		}
		w.drained()
	})
}

// A socket without an entry has the same jitter, from when it was first seen.
func TestJitterOfAnOrphan(t *testing.T) {
	for _, p := range here {
		policy := jittered(10*time.Second, 100)
		w := newWorld(t, policy)
		c := w.open(p, 40001, port)
		c.untracked = true
		w.flush()
		w.run(25 * time.Second)
		ended(t, c, policy.AgeLimit(c.tuple), 3*time.Second)
		if r := w.one(); r.Age != policy.AgeLimit(c.tuple) {
			t.Errorf("result %+v, want an age of %s", r, policy.AgeLimit(c.tuple))
		}
	}
}

// What is pinned without a reaper to come has its jitter, too.
func TestJitterOfPinAll(t *testing.T) {
	policy := jittered(100*time.Second, 100)
	w := newWorld(t, policy)
	var conns []*conn
	for i := range 20 {
		conns = append(conns, w.open(forwarded, uint16(40000+i), port))
	}
	if without, err := w.r.PinAll(); without != 0 || err != nil {
		t.Fatal(without, err)
	}
	for range 100 {
		w.elapse(w.boot.Add(20 * time.Millisecond))
		w.r.serve()
	}
	w.kill()
	for _, c := range conns {
		c.talk(50*time.Millisecond, time.Hour)
	}
	w.run(210 * time.Second)
	for _, c := range conns {
		if c.client.open() && c.server.open() {
			t.Errorf("%s is open", c)
		}
		e := w.closed[c.way(c.client)]
		if s := w.closed[c.way(c.server)]; e == 0 || s != 0 && s < e {
			e = s
		}
		if age := e.Sub(c.born); age < policy.AgeLimit(c.tuple) || age > policy.AgeLimit(c.tuple)+200*time.Millisecond {
			t.Errorf("%s was reset at age %s, want %s", c, age, policy.AgeLimit(c.tuple))
		}
	}
}
