package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/reaper/challenge"
)

// use puts other policies in force, as a reload does.
func (w *world) use(policies ...ctpolicy.Policy) {
	if err := ctpolicy.Validate(policies); err != nil {
		w.tb.Fatal(err)
	}
	w.policies = ctpolicy.NewMatcher(policies, isHere)
	installed := map[string][]uint32{}
	for _, p := range policies {
		installed[p.Name] = []uint32{uint32(p.EntryTimeout() / time.Second)}
	}
	for _, c := range w.conns {
		c.policy = w.policies.Tuple(c.tuple, c.reply.Src.Addr())
	}
	timeline := w.r.Judge.Timeline
	w.r.Use(w.policies, &ctpolicy.Judge{Timeline: ctpolicy.NewTimeline(), Since: w.boot, Defaults: w.defaults, Installed: installed})
	if w.r.Judge.Timeline != timeline {
		w.tb.Error("the steps of the clock are forgotten")
	}
	w.sweepAt = w.boot
	w.check()
}

// elsewhere covers none of the test's connections.
func elsewhere() ctpolicy.Policy {
	return ctpolicy.Policy{Name: "other", Ports: []ctpolicy.PortRange{{First: 9, Last: 9}}, MaxAge: 2 * time.Second}
}

// A flow that waits for its pin gets the new limit.
func TestUseBeforeThePin(t *testing.T) {
	for _, anew := range []time.Duration{8 * time.Second, 30 * time.Second} {
		forPlaces(t, func(t *testing.T, p place) {
			w := newWorld(t, limit(10*time.Second, 0))
			begin := w.boot
			w.run(333 * time.Millisecond)
			c := w.open(p, 40000, port)
			w.run(6260*time.Millisecond - w.boot.Sub(begin)) // a sweep has just seen that it is due within lead
			if e := w.find(c.tuple); w.r.Scheduled() != 1 || ctpolicy.Pinned(&e.Entry) {
				t.Fatalf("%d scheduled, entry %+v", w.r.Scheduled(), e)
			}
			w.use(limit(anew, 0))
			w.run(anew - 4*time.Second)
			ended(t, c, anew, 100*time.Millisecond)
			w.drained()
		})
	}
}

// A pin stays in force when the limit becomes longer, and not when it becomes shorter. Nobody ends what no policy covers.
func TestUseAfterThePin(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for _, after := range []struct {
			policy     ctpolicy.Policy
			age, slack time.Duration
			early      int
		}{
			{limit(30*time.Second, 0), 20 * time.Second, 1100 * time.Millisecond, 1},
			{limit(20*time.Second, 0), 20 * time.Second, 1100 * time.Millisecond, 0},
			{limit(0, 30*time.Second), 20 * time.Second, 11 * time.Second, 1}, // its socket tells the pause
			{limit(15*time.Second, 0), 15 * time.Second, 50 * time.Millisecond, 0},
			{elsewhere(), 0, 0, 0},
		} {
			w := newWorld(t, limit(20*time.Second, 0))
			c := w.open(p, 40000, port)
			w.run(12 * time.Second)
			if e := w.find(c.tuple); !ctpolicy.Pinned(&e.Entry) {
				t.Fatal("not pinned")
			}
			if after.age == 20*time.Second {
				c.mayEnd = true
			}
			w.use(after.policy)
			if n, err := w.r.PinnedEarly(); n != after.early || err != nil {
				t.Errorf("%s: %d flows are pinned too early, %v; want %d", &after.policy, n, err, after.early)
			}
			w.run(20 * time.Second)
			if after.age == 0 {
				if !c.established() || w.r.Scheduled() != 0 {
					t.Errorf("not covered any more: established %v, %d scheduled", c.established(), w.r.Scheduled())
				}
				continue
			}
			ended(t, c, after.age, after.slack)
			w.drained()
		}
	})
}

// Challenges go on, and so does a survivor that is still covered.
func TestUseDuringTheEnd(t *testing.T) {
	for _, covered := range []bool{false, true} {
		for _, deaf := range []int{2, challenge.Attempts + 1} {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(forwarded, 40000, port)
			c.client.deaf = deaf
			w.run(10*time.Second + 100*time.Millisecond)
			if deaf > challenge.Attempts {
				w.run(challengesTake)
			}
			c.mayEnd = true
			policy := limit(time.Hour, 0)
			if policy.Name = "anew"; !covered {
				policy = elsewhere()
			}
			old := c.policy
			w.use(policy)
			c.policy = old // what is begun is not undone
			w.run(restAfter + challengesTake)
			w.drained()
			if !covered {
				continue // without a rule that answers
			}
			if r := w.results[len(w.results)-1]; c.open() || r.Policy != "ldap" || r.Method != MethodRule {
				t.Errorf("deaf to %d challenges: open %v, result %+v", deaf, c.open(), r)
			}
		}
	}
}

// What EndAll has scheduled and not begun is ended, if it is covered.
func TestUseAfterEndAll(t *testing.T) {
	for _, covered := range []bool{false, true} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(serverHere, 40000, port)
		w.run(time.Second)
		if err := w.r.EndAll(); err != nil {
			t.Fatal(err)
		}
		c.mayEnd = true
		if covered {
			w.use(limit(time.Hour, 0))
		} else {
			w.use(elsewhere())
		}
		w.run(time.Second)
		if c.open() == covered {
			t.Errorf("covered %v, open %v", covered, c.open())
		}
	}
}

// The age of a socket without an entry stays.
func TestUseKeepsOrphans(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	c.untracked = true
	w.flush()
	w.run(8 * time.Second)
	w.use(limit(12*time.Second, 0))
	w.run(5 * time.Second)
	ended(t, c, 12*time.Second, 50*time.Millisecond)
}

func TestPinnedEarlyReportsErrors(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.fault = func(string) error { return errBroken }
	if _, err := w.r.PinnedEarly(); err == nil {
		t.Error("it says nothing")
	}
}
