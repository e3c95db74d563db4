package reaper

import (
	"fmt"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// serveEvery is the number of flows after which a sweep looks whether something is due.
const serveEvery = 256

// filter takes the flows whose handshake is complete, so that a SYN flood costs nothing. While flows are picked up, and in
// the first sweep, all are looked at.
func (r *Reaper) filter() conntrack.Filter {
	if !r.swept || r.now() < r.Adopting.Add(2*r.Interval()) {
		return conntrack.Filter{}
	}
	return conntrack.Filter{Status: conntrack.StatusAssured, StatusMask: conntrack.StatusAssured}
}

// Sweep looks at every flow, schedules those that are due within lead, and finds covered sockets without an entry.
func (r *Reaper) Sweep() error {
	r.observeClock()
	r.seen.reset()
	r.dumped.reset()
	// A reaper that has just begun finds what is overdue in the order of the dump.
	r.schedule.halted = !r.swept
	defer func() { r.schedule.halted = false }()
	now, count := r.now(), 0
	err := r.Flows.Dump(r.filter(), func(e *conntrack.Entry) error {
		if count++; count%serveEvery == 0 {
			r.serve()
			now = r.now()
		}
		r.consider(e, now)
		return nil
	})
	r.mend()
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	r.swept = true
	r.forgetQuiet()
	r.forgetReported()
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
	r.notice(e, p)
	if p == nil {
		return
	}
	r.seen.add(e.Orig)
	if !p.Ends() || r.retried(e) || r.spared(p, e) {
		return
	}
	if !ctpolicy.Open(e) {
		if ctpolicy.Pinned(e) && e.State >= conntrack.StateTimeWait {
			r.tidy(e, p, now)
		}
		return
	}
	r.keep(e)
	d := r.judge(p, e, now)
	if d.At > now.Add(p.Lead()) || r.schedule.has(e) {
		return
	}
	r.schedule.add(r.newItem(e, p, d, now))
}

func (r *Reaper) newItem(e *conntrack.Entry, p *ctpolicy.Policy, d ctpolicy.Deadline, now ctpolicy.Instant) *item {
	it := &item{entry: *e, policy: p, deadline: d, birth: r.birth(e, now)}
	it.step, it.at = nextStep(p, e, d, now)
	return it
}

// nextStep is what to do with an open flow, and when.
func nextStep(p *ctpolicy.Policy, e *conntrack.Entry, d ctpolicy.Deadline, now ctpolicy.Instant) (step, ctpolicy.Instant) {
	switch {
	case d.Passed:
		return stepStrike, now
	case d.Cause == ctpolicy.CauseIdle, lingers(p, e, d):
		return stepWatch, max(d.At, now)
	case ctpolicy.Pinned(e), ctpolicy.Offloaded(e), !pinnable(p, e):
		return stepStrike, d.At
	}
	return stepPin, ctpolicy.PinAt(d.At, now)
}

// tidy deletes the pinned entry of a flow that closed by itself: pinned, it would only take up room until its deadline.
// A reset after the deadline may be the rule's, while no reaper was there: then an end may be left that was not told.
func (r *Reaper) tidy(e *conntrack.Entry, p *ctpolicy.Policy, now ctpolicy.Instant) {
	if it := r.schedule.find(e); it != nil && now >= it.deadline.At {
		return // it is being ended
	}
	if d := r.judge(p, e, now); d.Passed && resetByRule(e) {
		r.schedule.add(r.newItem(e, p, d, now))
		return
	}
	r.deleteEntry(e)
}

func (r *Reaper) deleteEntry(e *conntrack.Entry) {
	if err := r.Flows.Delete(e); err != nil {
		r.Log.Warn("delete the entry of a closed connection", "flow", e.Orig, "error", err)
	}
}
