package reaper

import (
	"fmt"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// openRetried opens a connection whose client has dialled in vain for a while, which its entry and the rules have seen.
func (w *world) openRetried(p place, clientPort uint16, before time.Duration) *conn {
	c := w.open(p, clientPort, port)
	e := w.find(c.tuple)
	e.Start -= int64(before)
	e.Label.Set(ctpolicy.LabelRetried)
	e.Label.Set(5)
	e.Mark = 7
	return c
}

// A flow that is younger than its entry ends at its own limit.
func TestRetried(t *testing.T) {
	for _, before := range []time.Duration{time.Second, 7 * time.Second, time.Hour} {
		forPlaces(t, func(t *testing.T, p place) {
			w := newWorld(t, limit(10*time.Second, 0))
			w.run(333 * time.Millisecond)
			c := w.openRetried(p, 40000, before)
			w.run(2 * w.r.Interval())
			e := w.find(c.tuple)
			if e.HasLabel(ctpolicy.LabelRetried) || e.HasLabel(ctpolicy.LabelTracked) || !e.HasLabel(5) || e.Mark != 7 || ctpolicy.Pinned(&e.Entry) {
				t.Errorf("entry %+v", e)
			}
			w.run(10 * time.Second)
			ended(t, c, 10*time.Second, w.r.Interval()+50*time.Millisecond)
			w.drained()
		})
	}
}

// Nobody pins it for another time before that, or tells that it is overdue.
func TestRetriedAndPinAll(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.openRetried(forwarded, 40000, time.Hour)
	if _, err := w.r.PinAll(); err != nil {
		t.Fatal(err)
	}
	w.drain()
	if e := w.find(c.tuple); !c.established() || e.HasLabel(ctpolicy.LabelRetried) || ctpolicy.Pinned(&e.Entry) {
		t.Errorf("established %v, entry %+v", c.established(), e)
	}
	w.run(11 * time.Second)
	ended(t, c, 10*time.Second, w.r.Interval()+50*time.Millisecond)
}

// A handshake that goes on is nobody's business, and a pin stays.
func TestRetriedOthersStay(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	dialling := w.openRetried(forwarded, 40000, time.Second)
	w.find(dialling.tuple).State = conntrack.StateSynSent
	w.find(dialling.tuple).Status = conntrack.StatusConfirmed
	other := w.open(forwarded, 40001, 80)
	w.find(other.tuple).Label.Set(ctpolicy.LabelRetried)
	pinned := w.openRetried(forwarded, 40002, time.Second)
	pinned.mayEnd = true
	w.find(pinned.tuple).Status |= conntrack.StatusFixedTimeout
	w.find(pinned.tuple).expires = w.boot.Add(20*time.Second + ctpolicy.Window)
	w.run(5 * time.Second)
	if len(w.changes) != 0 {
		t.Errorf("changes %v", w.changes)
	}
	w.run(10 * time.Second)
	ended(t, pinned, 9*time.Second, 50*time.Millisecond)
}

// Where its entry can't be made anew, the flow's clock starts all the same, once.
func TestRetriedCannotBeRenewed(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.fault = func(call string) error {
		if call == "Renew" {
			return fmt.Errorf("renew: %w", conntrack.ErrHelper)
		}
		return nil
	}
	c := w.openRetried(serverHere, 40000, time.Hour)
	w.run(9 * time.Second)
	if !c.established() || len(w.r.births) != 1 {
		t.Fatalf("established %v, %d births", c.established(), len(w.r.births))
	}
	w.run(2 * time.Second)
	ended(t, c, 10*time.Second, 50*time.Millisecond)
	w.run(5 * w.r.Interval())
	if len(w.r.births) != 0 {
		t.Errorf("%d births of entries that are gone", len(w.r.births))
	}
}

// Of many some are renewed with each sweep, and the others wait.
func TestManyRetried(t *testing.T) {
	w := newWorld(t, limit(time.Minute, 0))
	var conns []*conn
	for i := range maxMended + 100 {
		conns = append(conns, w.openRetried(forwarded, uint16(20000+i), time.Hour))
	}
	w.run(70 * time.Second)
	for _, c := range conns {
		ended(t, c, time.Minute, w.r.Interval()+100*time.Millisecond)
	}
}

// An entry that was made of one or two packets is passed over by the sweeps, and its flow says nothing more.
func TestPickedUpHere(t *testing.T) {
	for _, p := range here {
		for _, seen := range []uint32{conntrack.StatusSeenReply, 0} {
			w := newWorld(t, limit(10*time.Second, 0))
			w.run(3 * time.Second)
			w.open(p, 40001, 80) // so that cookies differ
			c := w.open(p, 40000, port)
			e := w.find(c.tuple)
			e.Status = conntrack.StatusConfirmed | seen
			w.run(2 * w.r.Interval())
			if !ctpolicy.Open(&w.find(c.tuple).Entry) {
				t.Errorf("%s: the entry is not assured: %+v", p.name, w.find(c.tuple))
			}
			w.run(9 * time.Second)
			ended(t, c, 10*time.Second, 50*time.Millisecond)
			w.drained()
			if len(w.r.orphans) != 0 {
				t.Errorf("%d orphans", len(w.r.orphans))
			}
		}
	}
}

// A handshake that is not complete, of which the client's socket is open already, is not one that was picked up.
func TestNotPickedUp(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.run(3 * time.Second)
	c := w.open(clientHere, 40000, port)
	e := w.find(c.tuple)
	e.Status, e.State = conntrack.StatusConfirmed|conntrack.StatusSeenReply, conntrack.StateSynRecv
	w.run(5 * time.Second)
	if len(w.changes) != 0 {
		t.Errorf("changes %v", w.changes)
	}
}
