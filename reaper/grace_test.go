package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/reaper/sockdiag"
)

const (
	graceAge  = 10 * time.Second
	grace     = 20 * time.Second
	busyEvery = 93 * time.Millisecond
)

func graceful() ctpolicy.Policy {
	p := limit(graceAge, 0)
	p.Grace = grace
	return p
}

// pauseSlack is how late the end of a pause is noticed.
func (p place) pauseSlack() time.Duration {
	if p.hasSocket() {
		return 3 * jiffy
	}
	return time.Second + lingerEvery + ruleDelay + lookAfter // the entry counts whole seconds
}

// stream sends packets from one end only.
func (c *conn) stream(from *tcp, every, duration time.Duration) {
	until := c.k.boot.Add(duration)
	var next func()
	next = func() {
		if c.k.boot > until || !c.established() {
			return
		}
		c.send(from, data, "")
		c.k.after(every, next)
	}
	next()
}

// A flow that pauses when its time is up ends at max_age, as without grace.
func TestGraceOfAnIdleFlow(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		c := w.open(p, 40000, port)
		c.talk(busyEvery, 5*time.Second)
		w.run(graceAge - time.Millisecond)
		if !c.established() {
			t.Fatal("ended early")
		}
		w.run(3 * time.Second)
		ended(t, c, graceAge, ruleDelay+lookAfter)
		if r := w.one(); r.Limit != ctpolicy.CauseMaxAge || r.Late < 0 || r.Late > ruleDelay+lookAfter {
			t.Errorf("result %+v", r)
		}
		w.drained()
	})
}

// A busy flow ends when it pauses for a second; shorter pauses are none.
func TestGraceUntilAPause(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for _, every := range []time.Duration{busyEvery, 900 * time.Millisecond} {
			for _, busy := range []time.Duration{10500 * time.Millisecond, 13 * time.Second, 20123 * time.Millisecond} {
				w := newWorld(t, graceful())
				c := w.open(p, 40000, port)
				c.talk(every, busy)
				w.run(busy)
				if !c.established() || len(w.changes) != 0 {
					t.Fatalf("ended early, at age %s: %v", c.ended.Sub(c.born), w.changes)
				}
				w.run(5 * time.Second)
				paused := max(graceAge, c.talked.Sub(c.born)+ctpolicy.GracePause)
				ended(t, c, paused, p.pauseSlack())
				if r := w.one(); r.Limit != ctpolicy.CauseMaxAge || r.Late < 0 || r.Late > c.ended.Sub(c.born)-paused+time.Millisecond {
					t.Errorf("result %+v, ended %s after the pause", r, c.ended.Sub(c.born)-paused)
				}
				w.drained()
			}
		}
	})
}

// A flow that never pauses ends at its hard end, to the millisecond, by its pin if there is no reaper any more.
func TestGraceOfABusyFlow(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for _, dies := range []bool{false, true} {
			w := newWorld(t, graceful())
			c := w.open(p, 40000, port)
			c.talk(busyEvery, time.Hour)
			w.run(graceAge + grace - hardPin)
			if e := w.find(c.tuple); ctpolicy.Pinned(&e.Entry) {
				t.Error("pinned too soon")
			}
			w.run(100 * time.Millisecond)
			e := w.find(c.tuple)
			if starts := e.expires.Add(-ctpolicy.Window).Sub(c.born); !ctpolicy.Pinned(&e.Entry) || starts < graceAge+grace || starts > graceAge+grace+25*time.Millisecond {
				t.Errorf("pinned: %v, the rule starts at age %s", ctpolicy.Pinned(&e.Entry), starts)
			}
			if dies {
				w.kill()
				w.run(2 * time.Second)
				if c.established() {
					t.Error("without a reaper it goes on")
				}
				continue
			}
			w.run(3 * time.Second)
			ended(t, c, graceAge+grace, 60*time.Millisecond)
			if r := w.one(); r.Limit != ctpolicy.CauseMaxAge || r.Late < 0 || r.Late > 60*time.Millisecond {
				t.Errorf("result %+v", r)
			}
			w.drained()
		}
	})
}

// A pin that loses a race is renewed, with another birth: its hard end stays where it was.
func TestGraceOfAPinThatLosesARace(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		c := w.open(p, 40000, port)
		c.talk(busyEvery, time.Hour)
		w.run(graceAge)
		w.pinRaces = 1
		w.run(grace + 3*time.Second)
		ended(t, c, graceAge+grace, 100*time.Millisecond)
		if w.pinRaces != 0 {
			t.Error("there was no race")
		}
	})
}

// A stream in one direction is busy at both ends.
func TestGraceOfAOneWayStream(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for _, fromServer := range []bool{false, true} {
			w := newWorld(t, graceful())
			c := w.open(p, 40000, port)
			from := c.client
			if fromServer {
				from = c.server
			}
			c.stream(from, busyEvery, 17*time.Second)
			w.run(17 * time.Second)
			if !c.established() {
				t.Fatalf("ended early, at age %s", c.ended.Sub(c.born))
			}
			w.run(4 * time.Second)
			ended(t, c, c.talked.Sub(c.born)+ctpolicy.GracePause, p.pauseSlack())
		}
	})
}

// A new reaper goes on where the old one was.
func TestGraceAfterARestart(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		paused, busy := w.open(p, 40000, port), w.open(p, 40001, port)
		gone := w.open(p, 40002, port)
		paused.talk(busyEvery, 20*time.Second)
		busy.talk(busyEvery, time.Hour)
		gone.talk(busyEvery, 14*time.Second)
		w.run(13 * time.Second)
		w.kill()
		w.run(4 * time.Second)
		w.start()
		w.run(time.Second)
		ended(t, gone, 17*time.Second, 60*time.Millisecond)
		w.run(20 * time.Second)
		ended(t, paused, paused.talked.Sub(paused.born)+ctpolicy.GracePause, p.pauseSlack())
		ended(t, busy, graceAge+grace, 60*time.Millisecond)
		w.run(3 * time.Second)
		w.drained()
	})
}

// Where the entry's timeout is anybody's, and no socket is here, only the hard end counts.
func TestGraceOfAnUncertainFlow(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		w.noRules = true
		c := w.open(p, 40000, port)
		looks := 0
		w.hook = func(call string) {
			if call == "Again" {
				looks++
			}
		}
		c.talk(busyEvery, 12*time.Second)
		w.run(graceAge + grace + 3*time.Second)
		if !p.hasSocket() {
			ended(t, c, graceAge+grace, 60*time.Millisecond)
			if looks > 12 {
				t.Errorf("%d looks", looks)
			}
			return
		}
		ended(t, c, c.talked.Sub(c.born)+ctpolicy.GracePause, 3*jiffy)
	})
}

// A busy flow is looked at once in a pause's time where a socket tells, and twice where its entry does.
func TestGraceLooksNoMoreThanNeeded(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		c := w.open(p, 40000, port)
		c.talk(busyEvery, time.Hour)
		looks := 0
		w.hook = func(call string) {
			if call == "Again" {
				looks++
			}
		}
		w.run(graceAge + 10*time.Second)
		most := 12
		if !p.hasSocket() {
			most = int(10*time.Second/lingerEvery) + 2
		}
		if looks > most || looks < 8 {
			t.Errorf("%d looks in 10 s", looks)
		}
	})
}

// A shorter idle limit ends a flow before max_age, and within the grace its pause of a second comes first.
func TestGraceAndIdle(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		policy := graceful()
		policy.Idle = 4 * time.Second
		w := newWorld(t, policy)
		idle, pausing, busy := w.open(p, 40000, port), w.open(p, 40001, port), w.open(p, 40002, port)
		idle.talk(busyEvery, 3*time.Second)
		pausing.talk(busyEvery, 12*time.Second)
		busy.talk(busyEvery, time.Hour)
		w.run(graceAge + grace + 3*time.Second)
		ended(t, idle, idle.talked.Sub(idle.born)+policy.Idle, 60*time.Millisecond)
		ended(t, pausing, pausing.talked.Sub(pausing.born)+ctpolicy.GracePause, p.pauseSlack())
		ended(t, busy, graceAge+grace, 60*time.Millisecond)
		for _, r := range w.results {
			if want := r.Flow == idle.tuple; (r.Limit == ctpolicy.CauseIdle) != want {
				t.Errorf("result %+v", r)
			}
		}
	})
}

// An idle limit that nobody could see before still ends a flow whose entry can't show its pause.
func TestGraceAndIdleOfAnUncertainFlow(t *testing.T) {
	policy := graceful()
	policy.Idle = 5 * time.Second
	w := newWorld(t, policy)
	w.noRules = true
	c := w.open(forwarded, 40000, port)
	c.talk(busyEvery, 12*time.Second)
	w.run(graceAge + grace - 2*time.Second)
	ended(t, c, c.talked.Sub(c.born)+policy.Idle, quietSlack+2*time.Second)
}

// A word between the last look at a pause and the strike saves the flow.
func TestGracePauseEndsAtTheLastMoment(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		c := w.open(p, 40000, port)
		c.talk(busyEvery, 12*time.Second)
		saved := false
		w.hook = func(call string) {
			if call == "Again" && !saved && w.boot >= c.talked.Add(ctpolicy.GracePause) {
				saved = true
				c.send(c.client, data, "")
			}
		}
		w.run(13900 * time.Millisecond)
		if !saved || !c.established() {
			t.Errorf("saved: %v, ended at age %s: %+v", saved, c.ended.Sub(c.born), w.results)
		}
		w.run(4 * time.Second)
		ended(t, c, c.talked.Sub(c.born)+ctpolicy.GracePause, p.pauseSlack())
	})
}

// The socket's packets pass conntrack by: its entry pauses and it does not.
func TestGraceOfATalkingSocket(t *testing.T) {
	for _, idle := range []time.Duration{0, 5 * time.Second} {
		policy := graceful()
		policy.Idle = idle
		w := newWorld(t, policy)
		c := w.open(serverHere, 40000, port)
		for at := time.Duration(0); at < 18*time.Second; at += busyEvery {
			w.after(at, func() { c.server.got, c.talked = w.boot, w.boot })
		}
		w.find(c.tuple).expires = w.boot.Add(5 * time.Minute)
		w.run(18 * time.Second)
		if !c.established() {
			t.Fatalf("ended early: %+v", w.results)
		}
		w.run(3 * time.Second)
		ended(t, c, c.talked.Sub(c.born)+ctpolicy.GracePause, 100*time.Millisecond)
	}
}

// A socket without an entry is looked at when its pause may be long enough, not only by the rare sweeps of a long limit.
func TestGraceOfAnOrphan(t *testing.T) {
	const maxAge = 10 * graceAge
	for _, p := range here {
		policy := graceful()
		policy.MaxAge = maxAge
		w := newWorld(t, policy)
		paused, busy := w.open(p, 40000, port), w.open(p, 40001, port)
		for _, c := range []*conn{paused, busy} {
			c.untracked = true
		}
		w.flush()
		paused.talk(busyEvery, maxAge+5*time.Second)
		busy.talk(busyEvery, time.Hour)
		w.run(maxAge + 5*time.Second)
		if !paused.established() {
			t.Fatal("ended early")
		}
		w.run(20 * time.Second)
		ended(t, paused, paused.talked.Sub(paused.born)+ctpolicy.GracePause, 100*time.Millisecond)
		ended(t, busy, maxAge+grace, 100*time.Millisecond)
		w.drained()
	}
}

// Without a reaper that stays, the hard end is what can be enforced.
func TestGraceOfPinAll(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, graceful())
		c := w.open(p, 40000, port)
		if without, err := w.r.PinAll(); without != 0 || err != nil {
			t.Fatal(without, err)
		}
		w.run(2 * time.Second)
		e := w.find(c.tuple)
		if starts := e.expires.Add(-ctpolicy.Window).Sub(c.born); !ctpolicy.Pinned(&e.Entry) || starts < graceAge+grace || starts > graceAge+grace+15*time.Millisecond {
			t.Errorf("pinned: %v, the rule starts at age %s", ctpolicy.Pinned(&e.Entry), starts)
		}
		w.run(graceAge + grace)
		ended(t, c, graceAge+grace, 60*time.Millisecond)
	})
}

// A flow in a flowtable shows no pause.
func TestGraceOfAnOffloadedFlow(t *testing.T) {
	w := newWorld(t, graceful())
	c := w.open(forwarded, 40000, port)
	w.offload(c)
	c.talk(busyEvery, time.Hour)
	w.run(graceAge + grace - time.Millisecond)
	if !c.established() || len(w.changes) != 0 {
		t.Fatal("ended early")
	}
	w.run(5 * time.Second)
	ended(t, c, graceAge+grace, 3*time.Second)
}

// With a rate nothing is pinned, and a flow that talks again when its turn comes is left until its next pause.
func TestGraceAndRate(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		policy := graceful()
		policy.Rate = 1
		w := newWorld(t, policy)
		var conns []*conn
		for i := range 8 {
			c := w.open(p, uint16(40000+i), port)
			c.talk(busyEvery, 11*time.Second)
			conns = append(conns, c)
		}
		w.run(14 * time.Second)
		var talks *conn
		for _, c := range conns {
			if c.open() {
				talks = c
			}
		}
		talks.talk(busyEvery, 10*time.Second)
		w.run(10 * time.Second)
		if !talks.established() {
			t.Errorf("a flow that talks was ended: %+v", w.results)
		}
		w.run(10 * time.Second)
		mustBePaced(t, endsOf(t, conns), 1)
	})
}

func TestGraceInReportMode(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		policy := graceful()
		policy.Mode = ctpolicy.Report
		w := newWorld(t, policy)
		c := w.open(p, 40000, port)
		c.talk(busyEvery, 15*time.Second)
		w.run(graceAge + grace + 5*time.Second)
		r := w.untouched(c, 1)
		want := graceAge + grace // its entry has no ct timeout object
		if p.hasSocket() {
			want = c.talked.Sub(c.born) + ctpolicy.GracePause
		}
		if r.Age < want || r.Age > want+60*time.Millisecond {
			t.Errorf("result %+v, want an age of %s", r, want)
		}
	})
}

// The shortest grace: a pause that began before max_age ends the flow there, any other one comes too late.
func TestShortestGrace(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		policy := graceful()
		policy.Grace = time.Second
		w := newWorld(t, policy)
		paused, busy := w.open(p, 40000, port), w.open(p, 40001, port)
		paused.talk(busyEvery, 3*time.Second)
		busy.talk(busyEvery, time.Hour)
		w.run(graceAge + 3*time.Second)
		ended(t, paused, graceAge, 60*time.Millisecond)
		ended(t, busy, graceAge+time.Second, 60*time.Millisecond)
	})
}

func TestShortestPause(t *testing.T) {
	of := func(pause time.Duration, has bool) socket {
		return socket{Socket: sockdiag.Socket{LastSent: pause + time.Hour, LastRecv: pause + jiffy, LastAck: pause + time.Minute, HasInfo: has}}
	}
	for _, c := range []struct {
		name    string
		sockets []socket
		want    time.Duration
		ok      bool
	}{
		{"none", nil, 0, false},
		{"one", []socket{of(time.Second, true)}, time.Second, true},
		{"one that does not tell", []socket{of(time.Second, false)}, 0, false},
		{"the first is busier", []socket{of(time.Second, true), of(time.Minute, true)}, time.Second, true},
		{"the second is busier", []socket{of(time.Minute, true), of(time.Second, true)}, time.Second, true},
		{"the busier one does not tell", []socket{of(time.Minute, true), of(time.Second, false)}, time.Minute, true},
	} {
		if got, ok := shortestPause(c.sockets); got != c.want || ok != c.ok {
			t.Errorf("%s: %s, %v; want %s, %v", c.name, got, ok, c.want, c.ok)
		}
	}
}
