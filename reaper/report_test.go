package reaper

import (
	"slices"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

func reporting(maxAge, idle time.Duration) ctpolicy.Policy {
	p := limit(maxAge, idle)
	p.Mode = ctpolicy.Report
	return p
}

// untouched fails unless the label is all that has changed, and answers the only result.
func (w *world) untouched(c *conn, labels int) Result {
	w.tb.Helper()
	if !c.established() {
		w.tb.Errorf("%s was ended", c)
	}
	if want := slices.Repeat([]string{"Relabel"}, labels); !slices.Equal(w.changes, want) {
		w.tb.Errorf("changes %v, want %v", w.changes, want)
	}
	if n := strings.Count(w.log.String(), "would end"); n != 1 {
		w.tb.Errorf("%d lines in the log", n)
	}
	r := w.one()
	if r.Method != MethodReported || r.Client.Method != MethodReported || r.Server.Method != MethodReported || r.Reason != "" {
		w.tb.Errorf("result %+v", r)
	}
	w.drained()
	return r
}

// At the deadline, once, whoever looks again, and nothing else happens to the flow.
func TestReportMaxAge(t *testing.T) {
	for name, every := range map[string]time.Duration{"busy": 50 * time.Millisecond, "idle": 0} {
		t.Run(name, func(t *testing.T) {
			forPlaces(t, func(t *testing.T, p place) {
				w := newWorld(t, reporting(10*time.Second, 0))
				c := w.open(p, 40000, port)
				if every > 0 {
					c.talk(every, time.Hour)
				}
				w.run(10*time.Second - time.Millisecond)
				if len(w.results) != 0 {
					t.Fatalf("reported early: %+v", w.results)
				}
				w.run(20 * time.Second)
				r := w.untouched(c, 1)
				if r.Limit != ctpolicy.CauseMaxAge || r.Late < 0 || r.Late > 50*time.Millisecond || r.Age != 10*time.Second+r.Late || r.Flow != c.tuple {
					t.Errorf("result %+v", r)
				}
				w.kill()
				w.start()
				w.run(20 * time.Second)
				w.untouched(c, 1)
			})
		})
	}
}

// The pause of a forwarded flow, whose entry has no ct timeout object, counts from when it was first seen.
func TestReportIdle(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, reporting(0, 10*time.Second))
		c := w.open(p, 40000, port)
		c.talk(500*time.Millisecond, 15*time.Second)
		w.run(24900 * time.Millisecond)
		if len(w.results) != 0 {
			t.Fatalf("reported early: %+v", w.results)
		}
		w.run(20 * time.Second)
		if r := w.untouched(c, 1); r.Limit != ctpolicy.CauseIdle || r.Age > 32*time.Second {
			t.Errorf("result %+v", r)
		}
		c.talk(500*time.Millisecond, 5*time.Second)
		w.run(20 * time.Second)
		w.untouched(c, 1)
	})
}

// What was overdue before the reaper came is reported at once; a process that dies after the label reports nothing twice.
func TestReportAfterARestart(t *testing.T) {
	w := newWorld(t, reporting(10*time.Second, 0))
	w.kill()
	c := w.open(forwarded, 40000, port)
	w.run(time.Minute)
	w.start()
	w.run(time.Second)
	if r := w.untouched(c, 1); r.Late < 49*time.Second {
		t.Errorf("result %+v", r)
	}
}

// An entry that has no room for a label is remembered, as long as it is there.
func TestReportWithoutALabel(t *testing.T) {
	w := newWorld(t, reporting(10*time.Second, 0))
	w.noLabels = true
	c := w.open(forwarded, 40000, port)
	w.run(time.Minute)
	w.untouched(c, 1)
	if len(w.r.reported) != 1 {
		t.Errorf("%d remembered", len(w.r.reported))
	}
	c.shut()
	w.remove(w.find(c.tuple))
	w.run(time.Minute)
	if len(w.r.reported) != 0 {
		t.Errorf("%d remembered", len(w.r.reported))
	}
}

// A label that can't be set makes no difference to this reaper.
func TestReportLabelFails(t *testing.T) {
	w := newWorld(t, reporting(10*time.Second, 0))
	w.fault = func(call string) error {
		if call == "Relabel" {
			return errBroken
		}
		return nil
	}
	c := w.open(forwarded, 40000, port)
	w.run(time.Minute)
	w.untouched(c, 0)
}

// While nothing can be read nothing is reported; later it is.
func TestReportAfterErrors(t *testing.T) {
	w := newWorld(t, reporting(10*time.Second, 0))
	c := w.open(bothHere, 40000, port)
	w.fault = func(call string) error {
		if call == "Lookup" || call == "Again" {
			return errBroken
		}
		return nil
	}
	w.run(time.Minute)
	if len(w.results) != 0 {
		t.Errorf("results %+v", w.results)
	}
	w.fault = nil
	w.run(10 * time.Second)
	w.untouched(c, 1)
}

// A socket without an entry is reported once, and a flow over loopback has two. Adoption makes no entry.
func TestReportOrphans(t *testing.T) {
	for _, p := range here {
		for _, policy := range []ctpolicy.Policy{reporting(10*time.Second, 0), reporting(0, 10*time.Second)} {
			w := newWorld(t, policy)
			c := w.open(p, 40000, port)
			c.untracked = true
			w.flush()
			if made, err := w.r.Adopt(); made != 0 || err != nil {
				t.Errorf("%d adopted, %v", made, err)
			}
			w.run(time.Minute)
			w.untouched(c, 0)
		}
	}
}

// PinAll and EndAll leave such flows alone, and so does what mends entries.
func TestReportLeavesAlone(t *testing.T) {
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, reporting(10*time.Second, 0))
		c := w.open(p, 40000, port)
		unassured := w.open(p, 40001, port)
		w.find(unassured.tuple).Status &^= conntrack.StatusAssured
		turned := w.open(forwarded, 40002, port)
		w.remove(w.find(turned.tuple))
		turned.send(turned.server, data, "")
		if without, err := w.r.PinAll(); without != 0 || err != nil {
			t.Error(without, err)
		}
		if err := w.r.EndAll(); err != nil {
			t.Error(err)
		}
		if n := w.r.Scheduled(); n != 0 {
			t.Errorf("%d scheduled", n)
		}
		w.run(9 * time.Second)
		if len(w.changes) != 0 || len(w.results) != 0 {
			t.Errorf("changes %v, results %+v", w.changes, w.results)
		}
		w.run(5 * time.Second)
		w.untouched(c, 1)
	})
}

// A flow that was pinned before its policy began to only report ends by its pin; nobody helps, and nobody reports.
func TestReportPinned(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.open(forwarded, 40000, port)
	w.run(9500 * time.Millisecond)
	before := len(w.changes)
	w.kill()
	reports := newKernel(t, reporting(10*time.Second, 0)).policies
	w.policies = reports
	w.start()
	w.run(time.Minute)
	if len(w.changes) != before || len(w.results) != 0 {
		t.Errorf("changes %v, results %+v", w.changes[before:], w.results)
	}
}

// A policy that only limits how many flows a client may have ends none.
func TestPolicyWithoutALifetime(t *testing.T) {
	policy := limit(0, 0)
	policy.MaxPerSource = 10
	w := newWorld(t, policy)
	c := w.open(bothHere, 40000, port)
	orphan := w.open(bothHere, 40001, port)
	orphan.untracked = true
	w.remove(w.find(orphan.tuple))
	w.run(time.Minute)
	if without, err := w.r.PinAll(); without != 0 || err != nil {
		t.Error(without, err)
	}
	w.run(time.Minute)
	if !c.established() || !orphan.established() || len(w.changes)+len(w.results) != 0 {
		t.Errorf("changes %v, results %+v", w.changes, w.results)
	}
}
