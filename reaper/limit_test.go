package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

const port = 389

func limit(maxAge, idle time.Duration) ctpolicy.Policy {
	return ctpolicy.Policy{Name: "ldap", Ports: []ctpolicy.PortRange{{First: port, Last: port}}, MaxAge: maxAge, Idle: idle}
}

// ended fails unless the connection ended at the given age, or at most slack later.
func ended(t *testing.T, c *conn, age, slack time.Duration) {
	t.Helper()
	if c.open() {
		t.Fatalf("%s is open at age %s", c, c.k.boot.Sub(c.born))
	}
	if got := c.ended.Sub(c.born); got < age || got > age+slack {
		t.Errorf("%s ended at age %s, want %s and at most %s more", c, got, age, slack)
	}
}

func forPlaces(t *testing.T, fn func(t *testing.T, p place)) {
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) { fn(t, p) })
	}
}

func (p place) hasSocket() bool { return p.client == hereAddr || p.server == hereAddr }

func TestMaxAge(t *testing.T) {
	const maxAge = 10 * time.Second
	for name, every := range map[string]time.Duration{"busy": 7 * time.Millisecond, "idle": 0} {
		t.Run(name, func(t *testing.T) {
			forPlaces(t, func(t *testing.T, p place) {
				w := newWorld(t, limit(maxAge, 0))
				w.run(333 * time.Millisecond)
				c := w.open(p, 40000, port)
				if every > 0 {
					c.talk(every, time.Hour)
				}
				w.run(maxAge - time.Millisecond)
				if !c.established() {
					t.Fatal("ended early")
				}
				e := w.find(c.tuple)
				if starts := e.expires.Add(-ctpolicy.Window).Sub(c.born) - maxAge; !ctpolicy.Pinned(&e.Entry) || starts < 0 || starts > 15*time.Millisecond {
					t.Errorf("the rule starts %s after the deadline, pinned: %v", starts, ctpolicy.Pinned(&e.Entry))
				}
				w.run(2 * time.Second)
				method, slack := MethodSocket, time.Duration(0)
				if !p.hasSocket() {
					method, slack = MethodRule, ruleDelay+lookAfter
				}
				ended(t, c, maxAge, slack)
				r := w.one()
				if r.Method != method || r.Limit != ctpolicy.CauseMaxAge || r.Policy != "ldap" || r.Flow != c.tuple || r.Reason != "" {
					t.Errorf("result %+v, want method %s", r, method)
				}
				if r.Late < 0 || r.Late > slack || r.Age != maxAge+r.Late {
					t.Errorf("late %s at age %s", r.Late, r.Age)
				}
				w.drained()
			})
		})
	}
}

// Whatever the moment of birth and of the first sweep, a pin is sent so that the rule starts within milliseconds.
func TestPinOnTheSecond(t *testing.T) {
	for offset := time.Duration(0); offset < 1100*time.Millisecond; offset += 37 * time.Millisecond {
		w := newWorld(t, limit(10*time.Second, 0))
		w.run(offset)
		c := w.open(bothHere, 40000, port)
		w.run(9 * time.Second)
		e := w.find(c.tuple)
		if late := e.expires.Add(-ctpolicy.Window).Sub(c.born.Add(10 * time.Second)); !ctpolicy.Pinned(&e.Entry) || late < 0 || late > 15*time.Millisecond {
			t.Errorf("born at +%s: the rule starts %s late", offset, late)
		}
		w.run(time.Second)
		ended(t, c, 10*time.Second, 0)
	}
}

// A limit of one second leaves no time to pin.
func TestShortestLimit(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(time.Second, 0))
		for i := range 20 {
			c := w.open(p, uint16(40000+i), port)
			c.talk(3*time.Millisecond, time.Hour)
			w.run(1111 * time.Millisecond)
			ended(t, c, time.Second, 60*time.Millisecond)
		}
		w.drained()
	})
}

func TestIdle(t *testing.T) {
	const idle = 10 * time.Second
	forPlaces(t, func(t *testing.T, p place) {
		for _, talks := range []time.Duration{0, 1234 * time.Millisecond, 33333 * time.Millisecond} {
			w := newWorld(t, limit(0, idle))
			c := w.open(p, 40000, port)
			c.talk(100*time.Millisecond, talks)
			w.run(talks + idle - 200*time.Millisecond)
			if !c.established() {
				t.Fatalf("a flow that talked for %s ended early", talks)
			}
			w.run(2 * time.Second)
			ended(t, c, c.talked.Sub(c.born)+idle, 50*time.Millisecond)
			if r := w.one(); r.Limit != ctpolicy.CauseIdle || r.Late < 0 || r.Late > 100*time.Millisecond || r.Method == MethodNone {
				t.Errorf("result %+v", r)
			}
			w.drained()
		}
	})
}

// A flow that says a word just before its time is up lives on.
func TestIdleFlowTalksDuringTheWatch(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(0, 4*time.Second))
		c := w.open(p, 40000, port)
		for i := range 10 {
			word := time.Duration(i+1) * 3999 * time.Millisecond
			w.after(word, func() { c.send(c.client, data, "") })
		}
		w.run(39990 * time.Millisecond)
		if !c.established() || len(w.results) != 0 {
			t.Fatalf("ended, %+v", w.results)
		}
		w.run(5 * time.Second)
		ended(t, c, c.talked.Sub(c.born)+4*time.Second, 50*time.Millisecond)
	})
}

// The entry was made before the rules, so it has the namespace's timeout and no label.
func TestIdleEntryWithoutTimeoutObject(t *testing.T) {
	w := newWorld(t, limit(0, 10*time.Second))
	w.noRules = true
	c := w.open(bothHere, 40000, port)
	c.talk(time.Second, 5500*time.Millisecond)
	w.run(20 * time.Second)
	ended(t, c, 15*time.Second, 50*time.Millisecond)
}

// The socket's packets pass conntrack by, so only the socket knows that the flow talks.
func TestIdleEntryOfATalkingSocket(t *testing.T) {
	w := newWorld(t, limit(0, 10*time.Second))
	c := w.open(serverHere, 40000, port)
	for i := range 20 {
		w.after(time.Duration(i)*time.Second, func() { c.server.got, c.talked = w.boot, w.boot })
	}
	w.entries[0].expires = w.boot.Add(5 * time.Minute)
	w.entries[0].Label = conntrack.Label{}
	w.run(28 * time.Second)
	if !c.established() {
		t.Fatal("ended early")
	}
	w.run(2 * time.Second)
	ended(t, c, 29*time.Second, 100*time.Millisecond)
}

func TestTheEarlierLimit(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(20*time.Second, 8*time.Second))
		quiet := w.open(p, 40000, port)
		busy := w.open(p, 40001, port)
		late := w.open(p, 40002, port) // its pause would pass its age limit
		busy.talk(50*time.Millisecond, time.Hour)
		late.talk(time.Second, 14*time.Second)
		w.run(30 * time.Second)
		ended(t, quiet, 8*time.Second, 60*time.Millisecond)
		ended(t, busy, 20*time.Second, 60*time.Millisecond)
		ended(t, late, 20*time.Second, 60*time.Millisecond)
		for _, r := range w.results {
			want := ctpolicy.CauseMaxAge
			if r.Flow == quiet.tuple {
				want = ctpolicy.CauseIdle
			}
			if r.Limit != want {
				t.Errorf("%s: limit %s, want %s", r.Flow, r.Limit, want)
			}
		}
		w.drained()
	})
}

func TestHalfClosedFlow(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		w.after(time.Second, func() { c.send(c.client, fin, "") })
		w.run(12 * time.Second)
		ended(t, c, 10*time.Second, 60*time.Millisecond)
	})
}

// The uncovered flow is far older than any limit; its ports are those of a covered flow the other way round.
func TestUncoveredFlows(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(5*time.Second, 3*time.Second))
		w.listeners = append(w.listeners, addrPort(hereAddr, 8080))
		conns := []*conn{w.open(p, 40000, 80)}
		if p.client != hereAddr { // where port 389 has a listener
			conns = append(conns, w.open(p, port, 8080))
		}
		w.run(time.Minute)
		w.flush()
		w.run(time.Minute)
		for _, c := range conns {
			if !c.established() || len(w.results)+len(w.changes) != 0 {
				t.Errorf("%s: results %+v, changes %v", c, w.results, w.changes)
			}
		}
		if n := len(w.r.orphans); n != 0 {
			t.Errorf("%d orphans", n)
		}
	})
}

// The server's socket has a port that a policy covers, but the client dialled another one.
func TestRedirectedUncoveredFlow(t *testing.T) {
	w := newWorld(t, limit(5*time.Second, 0))
	src := addrPort(clientAddr, 40000)
	c := w.openVia(conntrack.Tuple{Src: src, Dst: addrPort(hereAddr, 80)}, conntrack.Tuple{Src: addrPort(hereAddr, port), Dst: src})
	w.run(time.Minute)
	if !c.established() || len(w.results)+len(w.changes) != 0 {
		t.Errorf("results %+v, changes %v", w.results, w.changes)
	}
	if made, err := w.r.Adopt(); made != 0 || err != nil {
		t.Errorf("Adopt made %d entries, %v", made, err)
	}
}

// A redirected flow is covered by the port that the client dialled.
func TestRedirectedFlow(t *testing.T) {
	w := newWorld(t, limit(5*time.Second, 0))
	src := addrPort(clientAddr, 40000)
	c := w.openVia(conntrack.Tuple{Src: src, Dst: addrPort(hereAddr, port)}, conntrack.Tuple{Src: addrPort(hereAddr, 3389), Dst: src})
	c.talk(10*time.Millisecond, time.Hour)
	w.run(6 * time.Second)
	ended(t, c, 5*time.Second, 0)
	if r := w.one(); r.Method != MethodSocket {
		t.Errorf("result %+v", r)
	}
}

func TestUnknownBirth(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.kill()
	w.noTimestamps = true
	c := w.open(bothHere, 40000, port)
	c.talk(10*time.Millisecond, time.Hour)
	w.run(7 * time.Second)
	w.start()
	w.run(11 * time.Second)
	ended(t, c, 17*time.Second, 50*time.Millisecond)
}

// A thousand flows end in order, and the sweeps in between find no flow twice.
func TestManyFlows(t *testing.T) {
	w := newWorld(t, limit(30*time.Second, 0))
	w.cost = 10 * time.Microsecond
	var conns []*conn
	for i := range 1000 {
		conns = append(conns, w.open(places[i%len(places)], uint16(10000+i), port))
		w.run(7 * time.Millisecond)
	}
	w.run(time.Minute)
	if len(w.results) != len(conns) {
		t.Errorf("%d results for %d flows", len(w.results), len(conns))
	}
	for _, c := range conns {
		ended(t, c, 30*time.Second, 150*time.Millisecond)
	}
	w.drained()
}

// A dump gives out a copy of a flow that is ended while the dump goes on.
func TestFlowEndsDuringADump(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(10*time.Second, 0))
		for i := range 2 * serveEvery {
			w.open(bothHere, uint16(10000+i), 80)
		}
		w.entries = w.entries[:serveEvery-5] // so that the flow follows the last look at the schedule
		c := w.open(p, 40000, port)
		for i := range 300 {
			w.open(bothHere, uint16(20000+i), 80)
		}
		for i := range 10 {
			w.entries = append(w.entries, w.entries[serveEvery-10+i]) // those come twice
		}
		w.run(9990 * time.Millisecond)
		w.hook = func(call string) {
			if call == "Dump" {
				w.elapse(c.born.Add(10 * time.Second))
			}
		}
		w.sweep()
		w.hook = nil
		w.run(15 * time.Second)
		ended(t, c, 10*time.Second, 60*time.Millisecond)
		w.one()
		w.drained()
	})
}

// The kernel may give a pin the timeout of a packet. The rule must still start at the deadline.
func TestPinThatLosesARace(t *testing.T) {
	for races := 1; races <= 2; races++ {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(bothHere, 40000, port)
		w.pinRaces = races
		w.run(9500 * time.Millisecond)
		e := w.find(c.tuple)
		if starts := e.expires.Add(-ctpolicy.Window).Sub(c.born); starts < 10*time.Second || starts > 10*time.Second+15*time.Millisecond {
			t.Errorf("after %d lost races the rule starts at age %s", races, starts)
		}
		w.run(2 * time.Second)
		ended(t, c, 10*time.Second, 0)
		w.drained()
	}
}

// A packet between the last look at a pause and the strike saves the flow, also where no socket tells.
func TestPauseEndsAtTheLastMoment(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(0, 10*time.Second))
		c := w.open(p, 40000, port)
		saved := false
		w.hook = func(call string) {
			// The first look-up after the pause was found long enough is that of the strike.
			if e := w.find(c.tuple); call == "Lookup" && !saved && e != nil && e.expires.Sub(w.boot) < time.Second {
				saved = true
				c.send(c.client, data, "")
			}
		}
		w.run(15 * time.Second)
		if !saved || !c.established() {
			t.Errorf("saved: %v, ended at age %s: %+v", saved, c.ended.Sub(c.born), w.results)
		}
		w.run(10 * time.Second)
		if c.open() {
			t.Error("it lives on")
		}
	})
}

// The entry shows that a pause may be too long within the second before max_age; the socket shows that it will be later.
func TestMaxAgeWithinTheLastSecondOfAPause(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for talked := 5100 * time.Millisecond; talked < 6100*time.Millisecond; talked += 100 * time.Millisecond {
			w := newWorld(t, limit(10*time.Second, 5*time.Second))
			c := w.open(p, 40000, port)
			w.after(talked/2, func() { c.send(c.client, data, "") })
			w.after(talked, func() { c.send(c.client, data, "") })
			w.run(12 * time.Second)
			ended(t, c, 10*time.Second, 60*time.Millisecond)
			if r := w.one(); r.Limit != ctpolicy.CauseMaxAge {
				t.Errorf("result %+v", r)
			}
		}
	})
}
