package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// here are the places with a socket on this host: elsewhere there can be no orphan.
var here = []place{bothHere, serverHere, clientHere}

// Nobody knows when an open socket began that never had an entry: age counts from the first sweep on.
func TestOrphanMaxAge(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		w.kill()
		c := w.open(p, 40000, port)
		c.untracked = true
		w.flush()
		w.run(4 * time.Second)
		w.start()
		c.talk(50*time.Millisecond, time.Hour)
		w.run(8 * time.Second)
		if p == bothHere && len(w.r.orphans) > 2 || p != bothHere && len(w.r.orphans) > 1 {
			t.Errorf("%d orphans", len(w.r.orphans))
		}
		w.run(4 * time.Second)
		ended(t, c, 14*time.Second, 0)
		if r := w.one(); r.Method != MethodSocket || r.Limit != ctpolicy.CauseMaxAge || r.Late != 0 || r.Flow != c.tuple || r.Age != 10*time.Second {
			t.Errorf("result %+v", r)
		}
		w.drained()
		if len(w.r.orphans) != 0 {
			t.Error("a closed orphan is not forgotten")
		}
	}
}

func TestOrphanIdle(t *testing.T) {
	for _, p := range here {
		for _, policy := range []ctpolicy.Policy{limit(0, 10*time.Second), limit(time.Hour, 10*time.Second)} {
			w := newWorld(t, policy)
			c := w.open(p, 40000, port)
			c.untracked = true
			w.flush()
			c.talk(300*time.Millisecond, 20*time.Second)
			w.run(29 * time.Second)
			if !c.established() {
				t.Fatal("ended early")
			}
			w.run(5 * time.Second)
			// A word that is said after the sweep moves it to the next one.
			ended(t, c, c.talked.Sub(c.born)+10*time.Second, 2*time.Second)
			if r := w.one(); r.Limit != ctpolicy.CauseIdle {
				t.Errorf("result %+v", r)
			}
			w.drained()
		}
	}
}

// The next packet makes an entry again, perhaps the wrong way round. Then the flow ends as others do, at its true age.
func TestOrphanIsTrackedAgain(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	w.flush()
	w.run(9800 * time.Millisecond)
	if len(w.r.orphans) != 1 || w.r.Scheduled() != 1 {
		t.Fatalf("%d orphans, %d scheduled", len(w.r.orphans), w.r.Scheduled())
	}
	c.send(c.client, data, "")
	w.run(5 * time.Second)
	ended(t, c, 10*time.Second, 50*time.Millisecond)
	if e := w.find(c.tuple); e != nil && ctpolicy.MidFlow(&e.Entry) || w.one().Age < 10*time.Second {
		t.Errorf("result %+v, entry %+v", w.one(), e)
	}
	w.drained()

	w = newWorld(t, limit(10*time.Second, 0))
	c = w.open(serverHere, 40000, port)
	w.flush()
	w.run(9800 * time.Millisecond)
	c.send(c.server, data, "") // its entry says that the server is the client
	w.run(time.Second)
	ended(t, c, 10*time.Second, 50*time.Millisecond)
}

// An orphan's cookie is not that of the next connection on its tuple.
func TestOrphanPortReuse(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	old := w.open(serverHere, 40000, port)
	w.flush()
	w.run(9900 * time.Millisecond)
	old.send(old.client, rst, "")
	next := w.open(serverHere, 40000, port)
	next.untracked = true
	w.flush()
	w.run(5 * time.Second)
	if !next.established() || len(w.results) != 0 {
		t.Errorf("the next connection is ended: %+v", w.results)
	}
	w.drained()
	w.run(10 * time.Second)
	ended(t, next, 10*time.Second, 2*time.Second)
}

// The same at the last moment, after the last sweep.
func TestOrphanChangesAtTheLastMoment(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(serverHere, 40000, port)
		w.flush()
		done := false
		w.hook = func(call string) {
			if call != "Lookup" || done {
				return
			}
			done = true
			if reuse {
				c.send(c.client, rst, "")
				c = w.open(serverHere, 40000, port)
				c.untracked = true
				w.flush()
			} else {
				c.send(c.client, data, "")
			}
		}
		w.run(11 * time.Second)
		if !done || c.established() != reuse || (len(w.results) != 0) == reuse {
			t.Errorf("reuse %v: looked up %v, results %+v", reuse, done, w.results)
		}
	}
}

// The socket of a flow that is born while the dump goes on is no orphan.
func TestFlowBornDuringASweep(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.hook = func(call string) {
		if call == "List" && len(w.conns) < 5 {
			w.open(bothHere, uint16(40000+len(w.conns)), port)
		}
	}
	w.run(7 * time.Second)
	if len(w.r.orphans) != 0 {
		t.Errorf("%d orphans", len(w.r.orphans))
	}
}

func TestAdopt(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		unknown := w.open(p, 40000, port)
		wrong := w.open(p, 40001, port)
		other := w.open(p, 40002, 80)
		w.flush()
		wrong.send(wrong.server, data, "")
		right := w.open(p, 40003, port)
		made, err := w.r.Adopt()
		if err != nil || made != 2 {
			t.Fatalf("%s: %d adopted, %v", p.name, made, err)
		}
		for _, c := range []*conn{unknown, wrong, right} {
			if e := w.find(c.tuple); e == nil || e.Orig != c.tuple {
				t.Errorf("%s: entry %+v", p.name, e)
			}
		}
		if w.find(other.tuple) != nil {
			t.Error("an uncovered connection is adopted")
		}
		if made, err := w.r.Adopt(); made != 0 || err != nil {
			t.Errorf("a second time: %d adopted, %v", made, err)
		}
		w.run(11 * time.Second)
		for _, c := range []*conn{unknown, wrong, right} {
			ended(t, c, 10*time.Second, 50*time.Millisecond)
		}
	}
}

// A packet is faster, once or always, and makes an entry of either direction.
func TestAdoptRaces(t *testing.T) {
	for _, wrong := range []bool{false, true} {
		for _, races := range []int{1, 100} {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(serverHere, 40000, port)
			w.flush()
			left := races
			w.hook = func(call string) {
				if call != "Create" || left == 0 {
					return
				}
				left--
				if wrong {
					c.send(c.server, data, "")
				} else {
					c.send(c.client, data, "")
				}
			}
			made, err := w.r.Adopt()
			switch {
			case wrong && races == 100:
				if err == nil || made != 0 {
					t.Errorf("always in the way: %d adopted, %v", made, err)
				}
			case err != nil || made > 1:
				t.Errorf("wrong way %v: %d adopted, %v", wrong, made, err)
			default:
				if e := w.find(c.tuple); e == nil || e.Orig != c.tuple {
					t.Errorf("entry %+v", e)
				}
			}
		}
	}
}

func TestAdoptFaults(t *testing.T) {
	for _, call := range []string{"Dump", "Listeners", "List", "Get", "Delete", "Create"} {
		w := newWorld(t, limit(10*time.Second, 0))
		a, b := w.open(serverHere, 40000, port), w.open(serverHere, 40001, port)
		w.flush()
		a.send(a.server, data, "") // so that there is something to delete
		n := 0
		w.fault = func(c string) error {
			if c == call {
				if n++; n == 1 {
					return errBroken
				}
			}
			return nil
		}
		if _, err := w.r.Adopt(); err == nil {
			t.Errorf("%s fails, and Adopt says nothing", call)
		}
		w.run(20 * time.Second)
		for _, c := range []*conn{a, b} {
			ended(t, c, 10*time.Second, 2*time.Second)
		}
	}
}

func TestPinAll(t *testing.T) {
	ssh := ctpolicy.Policy{Name: "ssh", Ports: []ctpolicy.PortRange{{First: 22, Last: 22}}, Idle: time.Minute}
	far := ctpolicy.Policy{Name: "far", Ports: []ctpolicy.PortRange{{First: 25, Last: 25}}, MaxAge: ctpolicy.MaxLimit}
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(10*time.Second, 0), ssh, far)
		w.kill()
		overdue := w.open(p, 40000, port)
		w.run(8 * time.Second)
		open := w.open(p, 40001, port)
		idle := w.open(p, 40002, 22)
		tooFar := w.open(p, 40003, 25)
		other := w.open(p, 40004, 80)
		handshake := w.open(p, 40005, port)
		w.find(handshake.tuple).State = conntrack.StateSynRecv
		w.find(handshake.tuple).Status &^= conntrack.StatusAssured
		unanswered := w.open(p, 40007, port)
		w.find(unanswered.tuple).Status &^= conntrack.StatusAssured | conntrack.StatusSeenReply
		half := w.open(p, 40008, port) // both directions were seen, but not yet what assures it
		w.find(half.tuple).Status &^= conntrack.StatusAssured
		closed := w.open(p, 40006, port)
		closed.shut()
		w.run(3 * time.Second)

		w.start()
		without, err := w.r.PinAll()
		if err != nil || without != 2 {
			t.Errorf("%d without a pin, %v", without, err)
		}
		w.drain()
		ended(t, overdue, 11*time.Second, 50*time.Millisecond)
		for _, c := range []*conn{open, half} {
			e := w.find(c.tuple)
			if starts := e.expires.Add(-ctpolicy.Window).Sub(c.born); !ctpolicy.Pinned(&e.Entry) || starts < 10*time.Second || starts > 10*time.Second+50*time.Millisecond {
				t.Errorf("%s: the rule starts at age %s", c, starts)
			}
		}
		for _, c := range []*conn{idle, tooFar, other, handshake, unanswered} {
			if e := w.find(c.tuple); !c.established() || ctpolicy.Pinned(&e.Entry) {
				t.Errorf("%s: entry %+v", c, e)
			}
		}
		if e := w.find(closed.tuple); ctpolicy.Pinned(&e.Entry) {
			t.Error("a closed flow is pinned")
		}
	})
}

// drain is Reaper.Drain in virtual time.
func (w *world) drain() {
	for it := w.r.pending(); it != nil; it = w.r.pending() {
		w.elapse(max(w.boot, it.at))
		w.r.serve()
		w.check()
	}
	w.drained()
}

func TestEndAll(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(10*time.Second, 0))
		c, other := w.open(p, 40000, port), w.open(p, 40001, 80)
		closed := w.open(p, 40002, port)
		closed.shut()
		w.run(4 * time.Second)
		c.mayEnd = true
		w.find(c.tuple).Status &^= conntrack.StatusAssured // conntrack has just picked it up
		if err := w.r.EndAll(); err != nil {
			t.Fatal(err)
		}
		w.drain()
		ended(t, c, 4*time.Second, 50*time.Millisecond)
		if r := w.one(); r.Limit != CauseExisting || r.Method == MethodNone || r.Age < 4*time.Second {
			t.Errorf("result %+v", r)
		}
		if !other.established() {
			t.Error("an uncovered flow is ended")
		}
	})
}

func TestPassesReportErrors(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.fault = func(call string) error {
		if call == "Dump" {
			return errBroken
		}
		return nil
	}
	if _, err := w.r.PinAll(); err == nil {
		t.Error("PinAll says nothing")
	}
	if err := w.r.EndAll(); err == nil {
		t.Error("EndAll says nothing")
	}
	if err := w.r.Sweep(); err == nil {
		t.Error("Sweep says nothing")
	}
}
