package reaper

import (
	"fmt"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

const (
	// serveEvery is the number of flows after which a sweep looks whether something is due.
	serveEvery = 256
	// lingering is how long the entry of an ended flow stays, to answer packets that were on their way.
	lingering = 2 * time.Second
)

// assured takes the flows whose handshake is complete, so that a SYN flood costs nothing.
var assured = conntrack.Filter{Status: conntrack.StatusAssured, StatusMask: conntrack.StatusAssured}

// Sweep looks at every flow, schedules those that are due within lead, and finds covered sockets without an entry.
func (r *Reaper) Sweep() error {
	r.observeClock()
	r.seen.reset()
	now, count := r.now(), 0
	err := r.Flows.Dump(assured, func(e *conntrack.Entry) error {
		if count++; count%serveEvery == 0 {
			r.serve()
			now = r.now()
		}
		r.consider(e, now)
		return nil
	})
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if err := r.sweepSockets(); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	return nil
}

// observeClock notes steps of the wall clock, which conntrack's birth times are made of.
func (r *Reaper) observeClock() {
	reading := r.Clock.Now()
	if !r.Judge.Timeline.Observe(reading) {
		return
	}
	r.Log.Info("the clock was stepped; ages stay as they are")
	if err := r.Table.Note(reading.Note(r.BootID)); err != nil {
		r.Log.Warn("keep a note of the clock's step", "error", err)
	}
}

// consider decides about one flow of the dump. It does not allocate unless the flow is due within lead.
func (r *Reaper) consider(e *conntrack.Entry, now ctpolicy.Instant) {
	p := r.Policies.Flow(e)
	if p == nil {
		return
	}
	r.seen.add(e.Orig)
	if !ctpolicy.Open(e) {
		if ctpolicy.Pinned(e) {
			r.tidy(e, p, now)
		}
		return
	}
	d := r.judge(p, e, now)
	if d.At > now.Add(p.Lead()) || r.schedule.has(e) {
		return
	}
	r.schedule.add(r.newItem(e, p, d, now))
}

func (r *Reaper) newItem(e *conntrack.Entry, p *ctpolicy.Policy, d ctpolicy.Deadline, now ctpolicy.Instant) *item {
	it := &item{entry: *e, policy: p, deadline: d, birth: r.Judge.Birth(e, now)}
	it.step, it.at = nextStep(e, d, now)
	return it
}

// nextStep is what to do with an open flow, and when.
func nextStep(e *conntrack.Entry, d ctpolicy.Deadline, now ctpolicy.Instant) (step, ctpolicy.Instant) {
	switch {
	case d.Passed:
		return stepStrike, now
	case d.Cause == ctpolicy.CauseIdle:
		return stepWatch, max(d.At, now)
	case ctpolicy.Pinned(e):
		return stepStrike, d.At
	}
	return stepPin, ctpolicy.PinAt(d.At, now)
}

// tidy deletes the pinned entry of a flow that is closed: pinned, it would refuse its client's port until the
// deadline. That of a flow that was ended here stays a moment, and that of a flow which is just being ended too: perhaps
// the rule has reset one end only.
func (r *Reaper) tidy(e *conntrack.Entry, p *ctpolicy.Policy, now ctpolicy.Instant) {
	if e.Struck() && time.Duration(e.Timeout)*time.Second >= ctpolicy.Window-lingering {
		return
	}
	if it := r.schedule.find(e); it != nil && now >= it.deadline.At {
		return
	}
	if d := r.judge(p, e, now); d.Passed && e.State == conntrack.StateClose && !e.Struck() {
		it := r.newItem(e, p, d, now)
		it.widow = true
		r.schedule.add(it)
		return
	}
	if err := r.Flows.Delete(e); err != nil {
		r.Log.Warn("delete the entry of a closed connection", "flow", e.Orig, "error", err)
	}
}
