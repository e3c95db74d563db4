package reaper

import (
	"fmt"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// pinTolerance is how many seconds may pass between a pin and its check, rounded up.
const pinTolerance = 2

// pins tells whether flows of a policy are pinned before their deadline. With a rate, the rule would end them all there. With
// a short idle limit a pin that loses its race (see pinAndCheck) would fix a timeout of less than Window, and the rule would
// answer at once.
func pins(p *ctpolicy.Policy) bool {
	return p.Enforced() && p.Rate == 0 && p.EntryTimeout() > ctpolicy.Window
}

// pinnable is pins for one flow: one without its policy's ct timeout object has the namespace's longer timeout.
func pinnable(p *ctpolicy.Policy, e *conntrack.Entry) bool {
	return pins(p) || p.Enforced() && p.Rate == 0 && !e.HasLabel(ctpolicy.LabelTracked) && time.Duration(e.Timeout)*time.Second > 2*ctpolicy.Window
}

// pin fixes the deadline in the kernel. From here on the flow ends even if the reaper dies. A flow that can't be pinned
// is still struck.
func (r *Reaper) pin(it *item) {
	now := r.now()
	seconds, _ := ctpolicy.PinTimeout(it.deadline.At, now)
	right, err := r.pinAndCheck(it, seconds)
	switch {
	case gone(err):
		r.schedule.drop(it)
		return
	case err == nil && !right && it.tries < maxTries:
		it.tries++
		if err = r.pinAnew(it); err == nil {
			return
		}
	case err == nil && !right:
		err = fmt.Errorf("the entry does not get the timeout of %d s", seconds)
	}
	if err != nil {
		r.Log.Warn("pin", "flow", it.entry.Orig, "error", err)
	}
	it.tries = 0
	it.rule = now.Add(time.Duration(seconds)*time.Second - ctpolicy.Window)
	r.schedule.later(it, stepStrike, it.deadline.At)
}

// pinAndCheck reads back what was pinned. The kernel sets the timeout first and the status second, and a packet on
// another CPU can refresh the timeout in between, for good.
func (r *Reaper) pinAndCheck(it *item, seconds uint32) (right bool, err error) {
	if err := r.Flows.Pin(&it.entry, seconds); err != nil {
		return false, err
	}
	e, err := r.Flows.Again(&it.entry)
	if err != nil {
		return false, err
	}
	it.entry = e
	return it.entry.Timeout <= seconds && it.entry.Timeout+pinTolerance >= seconds, nil
}

// pinAnew replaces an entry that was pinned for the wrong time, and schedules the flow to be pinned again. The new
// entry has another birth, so the deadline is not judged again.
func (r *Reaper) pinAnew(it *item) error {
	// Between the two entries a packet must not be taken for a stray, or for one of this host.
	if err := r.Table.Hold(it.entry.Tuples()...); err != nil {
		return err
	}
	if err := r.renew(it, r.unpinned); err != nil {
		return err
	}
	it.forced = true
	r.schedule.later(it, stepPin, ctpolicy.PinAt(it.deadline.At, r.now()))
	return nil
}

// arm makes the rule answer, from now on, what the ends of a flow send whose time is up. A packet between two entries may
// be answered, too.
func (r *Reaper) arm(it *item) error {
	now := r.now()
	if ctpolicy.Offloaded(&it.entry) || ctpolicy.Pinned(&it.entry) && pinnedLate(&it.entry, now) {
		if err := r.renew(it, pinForWindow); err != nil {
			return err
		}
	}
	if ctpolicy.Pinned(&it.entry) {
		return nil
	}
	seconds, _ := ctpolicy.PinTimeout(it.deadline.At, now)
	return r.Flows.Pin(&it.entry, seconds)
}

// pinnedLate tells that the rule can't answer yet, which starts up to a second before the latest deadline of a pin.
func pinnedLate(e *conntrack.Entry, now ctpolicy.Instant) bool {
	return ctpolicy.PinnedDeadline(e, now) > now.Add(time.Second)
}
