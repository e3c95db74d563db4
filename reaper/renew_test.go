package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A pin loses every race, so at the strike its rule is far away. Both ends end all the same.
func TestWrongPin(t *testing.T) {
	for _, policy := range []ctpolicy.Policy{limit(10*time.Second, 0), limit(time.Minute, 10*time.Second)} {
		forPlaces(t, func(t *testing.T, p place) {
			for _, races := range []int{1, 2, 4, 5} {
				w := newWorld(t, policy)
				c := w.open(p, 40000, port)
				w.pinRaces = races
				w.run(13 * time.Second)
				ended(t, c, 10*time.Second, 2*time.Second)
				if r := w.one(); r.Method == MethodNone {
					t.Errorf("after %d lost races: %+v", races, r)
				}
				w.drained()
			}
		})
	}
}

// A new entry must not be taken for the old one, whose reading says that it is pinned for the wrong time.
func TestWrongPinIsReplacedOnce(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.open(forwarded, 40000, port)
	w.pinRaces = 4
	renewed := 0
	w.hook = func(call string) {
		if call == "Renew" && w.boot >= w.conns[0].born.Add(10*time.Second) {
			renewed++
		}
	}
	w.run(13 * time.Second)
	if renewed != 1 {
		t.Errorf("renewed %d times after the deadline", renewed)
	}
}

// A packet of the client is faster than the new entry, and makes one of its own, which takes its place.
func TestPacketDuringARenewal(t *testing.T) {
	for _, wrongWay := range []bool{false, true} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(forwarded, 40000, port)
		w.pinRaces = 4
		faster := 0
		w.between = func() {
			if faster++; faster > 4 {
				return
			}
			if wrongWay {
				w.newEntry(c, c.reply, c.tuple)
			} else {
				w.newEntry(c, c.tuple, c.reply)
			}
		}
		w.run(13 * time.Second)
		if faster == 0 {
			t.Fatal("nothing was renewed")
		}
		if !wrongWay {
			ended(t, c, 10*time.Second, time.Second)
		}
		w.check()
	}
}

// The same while the ends are being challenged: nobody may say that they have gone.
func TestWrongEntryDuringAChallenge(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	c.client.deaf, c.server.deaf = -1, -1
	w.after(10*time.Second+ruleDelay+lookAfter, func() { w.find(c.tuple).expires = w.boot.Add(time.Hour) })
	w.between = func() { w.newEntry(c, c.reply, c.tuple) }
	w.run(15 * time.Second)
	if r := w.one(); r.Method != MethodNone {
		t.Errorf("result %+v", r)
	}
}

// What a packet sends while the entry is away is not lost.
func TestNothingSlipsThrough(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	w.pinRaces = 1
	slipped := 0
	w.between = func() {
		slipped++
		c.send(c.client, data, "")
		if w.find(c.tuple) != nil {
			t.Error("a packet made an entry")
		}
	}
	w.run(13 * time.Second)
	if slipped != 1 {
		t.Errorf("renewed %d times", slipped)
	}
	ended(t, c, 10*time.Second, 100*time.Millisecond)
}

// A flowtable bypasses the rules: its flow is not pinned, but taken back at the deadline.
func TestOffloaded(t *testing.T) {
	for name, every := range map[string]time.Duration{"idle": 0, "busy": 5 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(forwarded, 40000, port)
			w.run(time.Second)
			w.offload(c)
			if every > 0 {
				c.talk(every, time.Hour)
			}
			w.run(8999 * time.Millisecond)
			if e := w.find(c.tuple); !c.established() || e.Status&conntrack.StatusFixedTimeout != 0 {
				t.Fatalf("before the deadline: %+v", e)
			}
			w.run(2 * time.Second)
			ended(t, c, 10*time.Second, 1300*time.Millisecond)
			if r := w.one(); r.Client.Method != MethodRule || r.Server.Method != MethodRule || r.Age < 10*time.Second {
				t.Errorf("result %+v", r)
			}
			w.drained()
		})
	}
}

// The flowtable takes the flow after it was scheduled to be pinned, or takes it again after the strike.
func TestOffloadedLate(t *testing.T) {
	for _, at := range []time.Duration{5500 * time.Millisecond, 9900 * time.Millisecond, 10010 * time.Millisecond, 10400 * time.Millisecond} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(forwarded, 40000, port)
		c.client.deaf, c.server.deaf = 1, 1
		w.after(at, func() {
			w.find(c.tuple).Status &^= conntrack.StatusFixedTimeout // so that Pin may be tried
			w.offload(c)
		})
		w.run(13 * time.Second)
		ended(t, c, 10*time.Second, 2*time.Second)
	}
}

// The flowtable takes it while one end is reset. That entry is deleted like others, and reported once.
func TestOffloadedAfterTheEnd(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	w.run(11 * time.Second)
	w.find(c.tuple).Status &^= conntrack.StatusFixedTimeout
	w.offload(c)
	w.run(5 * time.Second)
	w.one()
	if w.find(c.tuple) != nil {
		t.Error("the entry is left")
	}
	w.drained()
}

// The pause of an offloaded flow is not known until the flowtable gives it up. Nobody looks at it more often for that.
func TestOffloadedIdle(t *testing.T) {
	for _, idle := range []time.Duration{time.Second, 10 * time.Second, 45 * time.Second} {
		w := newWorld(t, limit(0, idle))
		c := w.open(forwarded, 40000, port)
		w.offload(c)
		c.talk(300*time.Millisecond, time.Minute)
		looks := 0
		w.hook = func(call string) {
			if call == "Again" {
				looks++
			}
		}
		w.run(time.Minute + flowtablePause - time.Second)
		if !c.established() || looks > 200 {
			t.Errorf("idle %s: established %v, looked at %d times", idle, c.established(), looks)
		}
		w.run(6*time.Second + idle)
		ended(t, c, c.talked.Sub(c.born)+idle+flowtablePause, 5*time.Second)
		w.drained()
	}
}

// Without a reaper to come nobody else can end it, so it is not pinned in vain.
func TestPinAllOffloaded(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.kill()
	overdue := w.open(forwarded, 40000, port)
	w.run(8 * time.Second)
	c := w.open(forwarded, 40001, port)
	w.offload(overdue)
	w.offload(c)
	w.run(3 * time.Second)
	w.start()
	without, err := w.r.PinAll()
	if without != 1 || err != nil {
		t.Errorf("%d without a pin, %v", without, err)
	}
	w.drain()
	ended(t, overdue, 11*time.Second, 1300*time.Millisecond)
	if !c.established() {
		t.Error("ended early")
	}
}

// The flowtable takes it between the look and the pin.
func TestOffloadedBeforeThePin(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	w.run(3300 * time.Millisecond)
	if _, err := w.r.PinAll(); err != nil {
		t.Fatal(err)
	}
	w.offload(c)
	w.run(9 * time.Second)
	ended(t, c, 10*time.Second, 1300*time.Millisecond)
}

// The existing limit ends flows whose pin is minutes away.
func TestEndAllPinned(t *testing.T) {
	w := newWorld(t, limit(20*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	w.run(12 * time.Second)
	if e := w.find(c.tuple); !ctpolicy.Pinned(&e.Entry) {
		t.Fatal("not pinned")
	}
	c.mayEnd = true
	w.start()
	if err := w.r.EndAll(); err != nil {
		t.Fatal(err)
	}
	w.drain()
	ended(t, c, 12*time.Second, 100*time.Millisecond)
}

// pickUp loses the entry, and a packet of the server makes a new one.
func (w *world) pickUp(c *conn) {
	w.flush()
	c.send(c.server, data, "")
	if e := w.find(c.tuple); e.Orig != c.reply {
		w.tb.Fatalf("the entry is %+v", e)
	}
}

// Conntrack has the flow the wrong way round. Its clock starts when it is turned.
func TestReversed(t *testing.T) {
	for _, pinned := range []bool{false, true} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(forwarded, 40000, port)
		w.run(time.Second)
		w.pickUp(c)
		e := w.find(c.tuple)
		e.OrigFlags, e.ReplyFlags = 0x0a, 0x18
		if pinned { // whoever did that
			e.Status |= conntrack.StatusFixedTimeout
		}
		w.run(w.r.Interval())
		e = w.find(c.tuple)
		if e.Orig != c.tuple || e.Reply != c.reply || e.OrigFlags != 0x18 || e.ReplyFlags != 0x0a || ctpolicy.Pinned(&e.Entry) {
			t.Errorf("the entry is %+v", e)
		}
		w.run(8 * time.Second)
		if !c.established() {
			t.Fatal("its clock did not start anew")
		}
		w.run(3 * time.Second)
		ended(t, c, 11*time.Second, w.r.Interval()+50*time.Millisecond)
		w.drained()
	}
}

func TestReversedOthersStay(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	other := w.open(forwarded, 40000, 80)
	closed := w.open(forwarded, 40001, port)
	w.pickUp(other)
	w.pickUp(closed)
	w.newEntry(other, other.reply, other.tuple)
	closed.shut()
	w.find(closed.tuple).expires = w.boot.Add(time.Minute)
	w.run(20 * time.Second)
	if len(w.changes) != 0 || !other.established() {
		t.Errorf("changes %v", w.changes)
	}
}

// Of thousands some are turned with each sweep, and nothing is held one by one.
func TestManyReversed(t *testing.T) {
	const many = 2500
	w := newWorld(t, limit(time.Hour, 0))
	var conns []*conn
	for i := range many {
		conns = append(conns, w.open(forwarded, uint16(ctpolicy.ClientPort+i), port))
	}
	w.flush()
	for _, c := range conns {
		c.send(c.server, data, "")
	}
	turned := func() (n int) {
		for _, c := range conns {
			if w.find(c.tuple).Orig == c.tuple {
				n++
			}
		}
		return n
	}
	holds := 0
	w.hook = func(call string) {
		if call == "Hold" {
			holds++
		}
	}
	for _, want := range []int{maxMended, 2 * maxMended, many} {
		w.sweep()
		if got := turned(); got != want {
			t.Errorf("%d are turned, want %d", got, want)
		}
	}
	if holds != many/turnAtOnce {
		t.Errorf("held %d times", holds)
	}
}

// It is gone, or a packet is faster: that is no error. What is one is logged, and the next sweep tries again.
func TestReversedFails(t *testing.T) {
	for _, call := range []string{"Hold", "Renew"} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(forwarded, 40000, port)
		w.pickUp(c)
		failed := false
		w.fault = func(c string) error {
			if c != call || failed {
				return nil
			}
			failed = true
			return errBroken
		}
		w.sweep()
		if !failed || w.log.Len() == 0 {
			t.Errorf("%s fails, and nobody says so", call)
		}
		w.run(13 * time.Second)
		ended(t, c, 10*time.Second, 3*time.Second)
	}
	for name, race := range map[string]func(w *world, c *conn){
		"gone":   func(w *world, _ *conn) { w.flush() },
		"faster": func(w *world, c *conn) { w.newEntry(c, c.tuple, c.reply) },
	} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(forwarded, 40000, port)
		w.pickUp(c)
		if name == "gone" {
			w.hook = func(call string) {
				if call == "Hold" {
					race(w, c)
				}
			}
		} else {
			w.between = func() { race(w, c) }
		}
		w.sweep()
		if len(w.errs) != 0 || w.log.Len() != 0 {
			t.Errorf("%s: %v, %s", name, w.errs, &w.log)
		}
	}
}

// Conntrack has seen two packets of a flow, one each way: it is open, and not assured yet. Nothing follows.
func TestPickedUpAndSilent(t *testing.T) {
	for name, adopting := range map[string]bool{"before the first sweep": false, "in the window": true} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(forwarded, 40000, port)
		if adopting {
			w.r.Adopting = w.boot.Add(5 * time.Second)
			w.run(2 * time.Second)
		}
		w.flush()
		w.newEntry(c, c.tuple, c.reply)
		w.find(c.tuple).Status &^= conntrack.StatusAssured
		born := w.boot
		w.run(2 * time.Second)
		if w.find(c.tuple).Status&conntrack.StatusAssured == 0 {
			t.Errorf("%s: its entry is not assured", name)
		}
		w.run(9 * time.Second)
		ended(t, c, born.Sub(c.born)+10*time.Second, 100*time.Millisecond)
		w.drained()
	}
}
