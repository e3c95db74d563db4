package reaper

import (
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/challenge"
	"curfew/reaper/sockdiag"
)

// The reaper wakes up late, so the rule is first: it resets this host's socket, and the remote end is not told.
func TestTheRuleIsFirst(t *testing.T) {
	for _, p := range []place{serverHere, clientHere} {
		for _, deaf := range []int{0, 1, 3} {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(p, 40000, port)
			local, remote := c.server, c.client
			if p == clientHere {
				local, remote = remote, local
			}
			w.after(10030*time.Millisecond, func() { c.send(local, data, "") })
			w.run(9900 * time.Millisecond)
			w.lag = 150 * time.Millisecond
			w.run(200 * time.Millisecond)
			if local.open() || !remote.open() {
				t.Fatal("the rule was not first")
			}
			w.lag, remote.deaf = 0, deaf
			w.run(4 * time.Second)
			if r := w.one(); r.Method != MethodRule {
				t.Errorf("%s, %d challenges unanswered: %+v", p.name, deaf, r)
			}
			ended(t, c, 10*time.Second, 200*time.Millisecond+time.Duration(deaf)*challenge.Interval)
			w.drained()
		}
	}
}

// The rule resets this host's socket after the look-up: the remote end must be told all the same.
func TestTheRuleIsFasterThanDestroy(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	w.run(9900 * time.Millisecond)
	w.lag = 30 * time.Millisecond
	w.hook = func(call string) {
		if call == "Destroy" {
			c.send(c.server, data, "")
		}
	}
	w.run(time.Second)
	ended(t, c, 10*time.Second, 150*time.Millisecond)
	if r := w.one(); r.Method != MethodRule {
		t.Errorf("result %+v", r)
	}
	w.drained()
}

// The sweep comes before the strike then, and must leave the entry to it.
func TestTheRuleIsFirstAndASweepFollows(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	w.after(10030*time.Millisecond, func() { c.send(c.server, data, "") })
	w.run(9900 * time.Millisecond)
	w.elapse(c.born.Add(10100 * time.Millisecond))
	w.sweepAt = w.boot
	w.run(time.Second)
	ended(t, c, 10*time.Second, 200*time.Millisecond)
	if r := w.one(); r.Method != MethodRule {
		t.Errorf("result %+v", r)
	}
}

// A pin that is sent late makes the rule start late, and a challenge before that would be lost.
func TestLatePin(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.run(700 * time.Millisecond)
	c := w.open(forwarded, 40000, port)
	w.lag = 35 * time.Millisecond
	w.run(9 * time.Second)
	w.lag = 0
	w.run(2 * time.Second)
	ended(t, c, 10*time.Second, 100*time.Millisecond)
}

// A sweep between a challenge and the look for its answer leaves the entry.
func TestSweepDuringAChallenge(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	w.run(10*time.Second + ruleDelay + lookAfter/2)
	if c.open() {
		t.Fatal("not challenged yet")
	}
	w.sweep()
	w.run(time.Second)
	if r := w.one(); r.Method != MethodRule {
		t.Errorf("result %+v", r)
	}
}

// Remote ends that never answer are challenged some times, and reported once, until their entry expires.
func TestSurvivor(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	c.client.deaf, c.server.deaf = -1, -1
	var sent []time.Duration
	w.hook = func(call string) {
		if call == "Send" && (len(sent) == 0 || w.boot.Sub(c.born) != sent[len(sent)-1]) {
			sent = append(sent, w.boot.Sub(c.born))
		}
	}
	w.run(10*time.Second + ruleDelay + challengesTake)
	r := w.one()
	if r.Method != MethodNone || !strings.Contains(r.Reason, "did not answer") || r.Late < challengesTake {
		t.Errorf("result %+v", r)
	}
	if len(sent) != challenge.Attempts {
		t.Fatalf("challenged at %v, want %d times", sent, challenge.Attempts)
	}
	for i, at := range sent {
		if want := 10*time.Second + ruleDelay + time.Duration(i)*challenge.Interval; at != want {
			t.Errorf("attempt %d at %s, want %s", i, at, want)
		}
	}
	w.run(ctpolicy.Window + restAfter)
	w.one()
	if rounds := len(sent) / challenge.Attempts; rounds < 3 || rounds > int(ctpolicy.Window/restAfter) {
		t.Errorf("%d rounds of challenges", rounds)
	}
	w.drained()
}

// The same for an idle limit alone, whose pinned entry has no deadline of its own.
func TestIdleSurvivor(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for _, policy := range []ctpolicy.Policy{limit(0, 10*time.Second), limit(time.Minute, 10*time.Second)} {
			w := newWorld(t, policy)
			c := w.open(p, 40000, port)
			c.client.deaf, c.server.deaf = -1, -1
			broken := true
			w.fault = func(call string) error {
				if broken && call == "Destroy" {
					return errBroken
				}
				return nil
			}
			w.run(13 * time.Second)
			if r := w.one(); r.Method != MethodNone || r.Limit != ctpolicy.CauseIdle {
				t.Errorf("result %+v", r)
			}
			broken, c.client.deaf, c.server.deaf = false, 0, 0
			w.run(restAfter)
			ended(t, c, 13*time.Second, restAfter)
			if r := w.results[1]; len(w.results) != 2 || r.Method == MethodNone || r.Limit != ctpolicy.CauseIdle {
				t.Errorf("results %+v", w.results)
			}
			w.drained()
		}
	})
}

func TestClosedByItself(t *testing.T) {
	for name, at := range map[string]time.Duration{"before the pin": 3 * time.Second, "after the pin": 7500 * time.Millisecond, "just before the deadline": 9999 * time.Millisecond} {
		for how, shut := range map[string]func(c *conn){
			"properly":   (*conn).shut,
			"by a reset": func(c *conn) { c.send(c.client, rst, "") },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				forPlaces(t, func(t *testing.T, p place) {
					w := newWorld(t, limit(10*time.Second, 0))
					c := w.open(p, 40000, port)
					w.after(at, func() { shut(c) })
					w.run(at + w.r.Interval())
					if at > 5*time.Second && at < 9*time.Second && w.find(c.tuple) != nil {
						t.Error("the pinned entry of a closed flow is there after a sweep")
					}
					w.run(20 * time.Second)
					if c.ended.Sub(c.born) != at {
						t.Errorf("ended at %s", c.ended.Sub(c.born))
					}
					for _, r := range w.results {
						// What closes within milliseconds of its deadline may be taken for ended.
						if at < 9*time.Second || r.Method == MethodNone {
							t.Errorf("result %+v", r)
						}
					}
					w.drained()
				})
			})
		}
	}
}

// A sweep deletes an ended flow's entry, but not at once: packets on their way are answered for a while.
func TestEntryLingers(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		for _, interval := range []time.Duration{10 * time.Millisecond, 70 * time.Millisecond} {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(p, 40000, port)
			w.run(10100 * time.Millisecond)
			ended(t, c, 10*time.Second, 100*time.Millisecond)
			for w.find(c.tuple) != nil {
				w.run(interval)
				w.sweep()
			}
			if gone := w.boot.Sub(c.ended); gone < lingering || gone > lingering+time.Second+interval {
				t.Errorf("the entry was deleted after %s", gone)
			}
		}
	})
}

// TIME_WAIT and the like are no sockets to end.
func TestTimeWaitIsNoSocket(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(clientHere, 40000, port)
	w.run(9990 * time.Millisecond)
	c.shut()
	w.run(time.Second)
	if c.client.state != sockdiag.TimeWait {
		t.Errorf("the client is %v", c.client.state)
	}
	for _, r := range w.results {
		if r.Method == MethodNone {
			t.Errorf("result %+v", r)
		}
	}
}

// At any point between two calls the connection may close and its ports be used by the next one.
func TestPortReuse(t *testing.T) {
	for _, policy := range []ctpolicy.Policy{limit(10*time.Second, 0), limit(0, 10*time.Second), limit(12*time.Second, 10*time.Second)} {
		t.Run(policy.String(), func(t *testing.T) {
			forPlaces(t, func(t *testing.T, p place) {
				for _, closing := range []func(*conn){(*conn).shut, func(c *conn) { c.send(c.server, rst, "") }} {
					for when := 0; reuseAt(t, policy, p, closing, when); when++ {
						if when == 200 {
							t.Fatal("the reaper never comes to an end")
						}
					}
				}
			})
		})
	}
}

// reuseAt uses the ports again before the call of that number, and tells whether the reaper came so far.
func reuseAt(t *testing.T, policy ctpolicy.Policy, p place, closing func(*conn), when int) (reached bool) {
	w := newWorld(t, policy)
	w.cost = 100 * time.Microsecond
	old := w.open(p, 40000, port)
	w.run(9950 * time.Millisecond)
	var next *conn
	calls := 0
	w.hook = func(string) {
		if calls == when && old.established() {
			closing(old)
			next = w.open(p, 40000, port)
		}
		calls++
	}
	w.run(6 * time.Second)
	if next == nil {
		return calls > when
	}
	if !next.established() {
		t.Fatalf("reuse before call %d ended the new connection", when)
	}
	e := w.find(next.tuple)
	if e == nil || e.conn != next || e.State != conntrack.StateEstablished {
		t.Fatalf("reuse before call %d: the new entry is %+v", when, e)
	}
	w.hook = nil
	w.run(10 * time.Second)
	ended(t, next, 10*time.Second, 100*time.Millisecond)
	return true
}

// A new process knows as much as the old one.
func TestRestart(t *testing.T) {
	for _, policy := range []ctpolicy.Policy{limit(10*time.Second, 0), limit(0, 10*time.Second), limit(12*time.Second, 10*time.Second)} {
		for _, down := range []time.Duration{time.Second, 4 * time.Second, 8 * time.Second, 9500 * time.Millisecond} {
			for _, away := range []time.Duration{0, 400 * time.Millisecond, 1800 * time.Millisecond, 3 * time.Second, 7 * time.Second} {
				t.Run(policy.String()+", down from "+down.String()+" for "+away.String(), func(t *testing.T) {
					forPlaces(t, func(t *testing.T, p place) {
						w := newWorld(t, policy)
						c := w.open(p, 40000, port)
						w.run(down)
						w.kill()
						w.run(away)
						w.start()
						w.run(10*time.Second - down)
						w.run(2 * time.Second)
						// The entry of an idle flow expires one second after its limit; then the socket is all that is known.
						if !c.open() || away == 0 {
							ended(t, c, 10*time.Second, max(0, down+away-10*time.Second)+200*time.Millisecond)
						} else if policy.Idle == 0 || down+away < 11*time.Second {
							t.Errorf("open after %s", w.boot.Sub(c.born))
						}
						w.drained()
					})
				})
			}
		}
	}
}

// While no reaper is there the rule of a pin ends a busy flow.
func TestPinWithoutReaper(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(bothHere, 40000, port)
	c.talk(10*time.Millisecond, time.Hour)
	w.run(8 * time.Second)
	w.kill()
	w.run(2500 * time.Millisecond)
	if c.established() {
		t.Error("open")
	}
	w.start()
	w.run(5 * time.Second)
	w.drained()
}

// A step of the clock moves no deadline, and is noted for the next process.
func TestClockStep(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour, 3 * time.Second, -3 * time.Second} {
		for _, restart := range []bool{false, true} {
			w := newWorld(t, limit(10*time.Second, 0))
			early := w.open(bothHere, 40000, port)
			w.run(2 * time.Second)
			w.offset += int64(step)
			late := w.open(bothHere, 40001, port) // before the reaper notices
			w.run(2 * time.Second)
			if want := 2; len(w.notes) != want || !strings.HasPrefix(w.notes[want-1], "clock: boot "+bootID) {
				t.Errorf("notes %q", w.notes)
			}
			if restart {
				w.start()
			}
			w.run(20 * time.Second)
			slack := 50 * time.Millisecond
			if -10*time.Second < step && step < 0 {
				slack -= step // the clock has shown the time of its birth twice, and the later one is believed
			}
			ended(t, early, 10*time.Second, slack)
			// It was born between two readings, so its birth may be taken for a sweep's interval later.
			ended(t, late, 10*time.Second, 2*time.Second)
		}
	}
}

// The clock is stepped after the sweep has looked at it, and before the dump gives out a flow that was born after that.
func TestClockStepDuringADump(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.run(5 * time.Second)
	var c *conn
	w.hook = func(call string) {
		if call == "Dump" && c == nil {
			w.offset -= int64(time.Hour)
			c = w.open(bothHere, 40000, port)
		}
	}
	w.run(14 * time.Second)
	ended(t, c, 10*time.Second, 2*time.Second)

	// The same for the last look before the process ends.
	c = w.open(bothHere, 40001, port)
	w.offset -= int64(time.Hour)
	c2 := w.open(bothHere, 40002, port)
	w.run(10 * time.Millisecond)
	if _, err := w.r.PinAll(); err != nil {
		t.Fatal(err)
	}
	w.r.serve()
	if !c.established() || !c2.established() {
		t.Error("ended early")
	}
}

// Listeners have no cookie that Destroy takes, and no method of Sockets answers one: so only connections are asked for.
func TestListenerStays(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	before := len(w.listeners)
	c := w.open(clientHere, port, port)
	w.run(20 * time.Second)
	ended(t, c, 10*time.Second, 50*time.Millisecond)
	if len(w.listeners) != before {
		t.Error("a listener is gone")
	}
}

// The entry shows a pause that the socket does not have. That must not hide max_age.
func TestMaxAgeOfATalkingSocket(t *testing.T) {
	w := newWorld(t, limit(20*time.Second, 15*time.Second))
	c := w.open(serverHere, 40000, port)
	w.find(c.tuple).expires = w.boot.Add(5 * time.Minute)
	w.find(c.tuple).Label = conntrack.Label{}
	for i := range 100 {
		w.after(time.Duration(i)*300*time.Millisecond, func() { c.server.got, c.talked = w.boot, w.boot })
	}
	w.run(22 * time.Second)
	ended(t, c, 20*time.Second, 60*time.Millisecond)
	if r := w.one(); r.Limit != ctpolicy.CauseMaxAge {
		t.Errorf("result %+v", r)
	}
}
