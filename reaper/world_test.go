package reaper

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/reaper/challenge"
)

// A world is a kernel and a reaper that comes and goes.
type world struct {
	*kernel
	r       *Reaper
	sweepAt ctpolicy.Instant
	lag     time.Duration // by which the reaper wakes up late
	results []Result
	log     bytes.Buffer
	errs    []error
}

func newWorld(tb testing.TB, policies ...ctpolicy.Policy) *world {
	w := &world{kernel: newKernel(tb, policies...)}
	w.start()
	tb.Cleanup(func() {
		if tb.Failed() && w.log.Len() < 20000 {
			tb.Logf("the reaper's log:\n%s", &w.log)
		}
	})
	return w
}

// start is a new process, that knows only what the kernel and the table know.
func (w *world) start() {
	var readings []ctpolicy.Reading
	for _, note := range w.notes {
		if reading, ok := ctpolicy.ParseNote(note, bootID); ok {
			readings = append(readings, reading)
		}
	}
	timeline := ctpolicy.NewTimeline(readings...)
	if timeline.Observe(w.Now()) {
		_ = w.Note(w.Now().Note(bootID)) // as each apply does
	}
	installed := map[string][]uint32{}
	for _, p := range w.policies.Policies() {
		installed[p.Name] = []uint32{uint32(p.EntryTimeout() / time.Second)}
	}
	k := w.kernel
	w.r = &Reaper{
		Policies: k.policies, Flows: k, Sockets: sockets{k}, Challenger: k, Table: k, Clock: k, BootID: bootID,
		Judge: &ctpolicy.Judge{
			Timeline: timeline, Since: k.boot, Defaults: k.defaults, Installed: installed,
		},
		Local: isHere,
		Log:   slog.New(slog.NewTextHandler(&w.log, nil)),
		Ended: func(r *Result) { w.verify(r); w.results = append(w.results, *r) },
	}
	w.r.Init()
	w.sweepAt = k.boot
}

// verify compares a result with what is true of each end.
func (w *world) verify(r *Result) {
	for _, c := range slices.Backward(w.conns) {
		client, server := c.client, c.server
		if c.tuple == reversed(r.Flow) { // an orphan whose ports do not tell
			client, server = server, client
		}
		if client.local != r.Flow.Src || client.remote != r.Flow.Dst || c.open() && !c.due() { // the next one on its ports
			continue
		}
		w.verifyEnd(c, client, &r.Client)
		w.verifyEnd(c, server, &r.Server)
		return
	}
	w.tb.Errorf("a result of no connection: %+v", r)
}

func (w *world) verifyEnd(c *conn, e *tcp, r *EndResult) {
	_, ruled := w.closed[c.way(e)]
	wrong := e.open()
	switch r.Method {
	case MethodNone:
		wrong = r.Reason == ""
	case MethodReported:
		wrong = c.policy.Enforced()
	case MethodSocket:
		wrong = wrong || !e.here
	case MethodPeer:
		wrong = wrong || !c.other(e).here
	case MethodRule:
		wrong = wrong || !ruled
	}
	if wrong {
		w.tb.Errorf("%s: the end %s is %v, result %+v", c, e.local, e.state, r)
	}
}

// errKilled ends a reaper in the middle of its work.
var errKilled = errors.New("killed")

func (w *world) kill() { w.r, w.killed = nil, w.calling }

// work does what Reaper.Run does when it wakes up.
func (w *world) work() {
	defer func() {
		if err := recover(); err != nil && err != errKilled {
			panic(err)
		}
	}()
	r := w.r
	if now := w.boot; now >= w.sweepAt {
		w.sweepAt = now.Add(r.Interval())
		w.sweep()
	}
	r.serve()
	w.check()
}

// run is Reaper.Run in virtual time.
func (w *world) run(d time.Duration) {
	until := w.boot.Add(d)
	for w.r != nil {
		next := max(w.boot, min(w.sweepAt, w.r.nextAt(w.sweepAt)).Add(w.lag))
		if next > until {
			break
		}
		w.elapse(next)
		if w.r == nil {
			break
		}
		w.work()
	}
	w.elapse(max(w.boot, until))
}

func (w *world) sweep() {
	if err := w.r.Sweep(); err != nil {
		w.errs = append(w.errs, err)
	}
	w.check()
}

// check is for what is true between any two steps: a flow is known if and only if it waits in the queue.
func (w *world) check() {
	s := w.r.schedule
	waiting := len(s.queue)
	for _, l := range s.lanes {
		waiting += len(l.waiting)
	}
	if waiting != len(s.known) {
		w.tb.Errorf("%d flows wait and %d are known", waiting, len(s.known))
	}
}

// one is the only result.
func (w *world) one() Result {
	w.tb.Helper()
	if len(w.results) != 1 {
		w.tb.Fatalf("%d results, want one: %+v", len(w.results), w.results)
	}
	return w.results[0]
}

// drained fails unless nothing is left to do but to delete the entries of what has just ended.
func (w *world) drained() {
	w.tb.Helper()
	n := w.r.Scheduled()
	for _, it := range w.r.schedule.queue {
		if it.step == stepForget && it.at <= w.boot.Add(lingering) {
			n--
		}
	}
	if n != 0 {
		w.tb.Errorf("%d flows are still scheduled", n)
	}
}

// challengesTake is how long a flow is challenged until the reaper gives up.
const challengesTake = challenge.Attempts * challenge.Interval
