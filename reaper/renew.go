package reaper

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// enforce makes sure that the rule answers the packets of a flow whose time is up. A pin that is wrong for good, or that
// is not due yet, is replaced, and so is the entry of a flow in a flowtable, which packets pass by: it lets go within a
// second of the entry's end (nf_flow_offload_gc_step).
func (r *Reaper) enforce(it *item) error {
	e, now := &it.entry, r.now()
	switch {
	case ctpolicy.Offloaded(e), ctpolicy.Pinned(e) && ctpolicy.PinnedDeadline(e, now) > now.Add(pinTolerance*time.Second):
		return r.renew(it, func(anew *conntrack.Entry) {
			anew.Status |= conntrack.StatusFixedTimeout
			anew.Timeout = uint32(ctpolicy.Window / time.Second)
			if anew.State == conntrack.StateNone {
				anew.State = conntrack.StateEstablished
			}
		})
	case !ctpolicy.Pinned(e):
		seconds, _ := ctpolicy.PinTimeout(it.deadline.At, now)
		return r.Flows.Pin(e, seconds)
	}
	return nil
}

// renew gives a flow another entry. Its birth is lost, so the deadline is not judged again. A packet that was faster may
// have made an entry of its own, perhaps the wrong way round: that one is replaced then.
func (r *Reaper) renew(it *item, change func(anew *conntrack.Entry)) error {
	e, orig := it.entry, it.entry.Orig
	for try := 0; ; try++ {
		anew, err := r.Flows.Renew(&e, func(anew *conntrack.Entry) {
			if anew.Orig != orig {
				anew.Reverse()
			}
			change(anew)
		})
		if err == nil {
			r.schedule.rename(it, &anew)
			return nil
		}
		if !errors.Is(err, unix.EEXIST) || try == maxTries {
			return err
		}
		if e, err = r.Flows.Get(orig, it.entry.Zone); err != nil {
			return err
		}
	}
}

// maxMended is how many entries a sweep mends.
const maxMended = 1000

// notice remembers entries that conntrack made from a packet in mid-flow and that need to be mended.
func (r *Reaper) notice(e *conntrack.Entry, covered bool) {
	switch {
	case len(r.reversed)+len(r.unassured) >= maxMended:
	case covered && ctpolicy.PickedUp(e):
		r.unassured = append(r.unassured, *e)
	case !covered && r.Policies.Reversed(e) != nil:
		r.reversed = append(r.reversed, *e)
	}
}

// mend makes the noticed entries such as sweeps find: assured, and the right way round. The clock of one that is turned
// starts now.
func (r *Reaper) mend() {
	for i := range r.unassured {
		r.failed("assure", &r.unassured[i], r.Flows.Assure(&r.unassured[i]))
	}
	if len(r.reversed) > 0 {
		r.turn()
	}
	r.unassured, r.reversed = r.unassured[:0], r.reversed[:0]
}

func (r *Reaper) turn() {
	var tuples []conntrack.Tuple
	for i := range r.reversed {
		tuples = append(tuples, r.reversed[i].Orig, r.reversed[i].Reply)
	}
	if err := r.Table.Hold(tuples...); err != nil {
		r.Log.Warn("turn entries around", "error", err)
		return
	}
	for i := range r.reversed {
		e := &r.reversed[i]
		_, err := r.Flows.Renew(e, func(anew *conntrack.Entry) {
			anew.Reverse()
			anew.Timeout = r.Judge.Defaults[conntrack.TimeoutEstablished]
			anew.Label.Set(ctpolicy.LabelCovered)
		})
		r.failed("turn an entry around", e, err)
	}
}

// failed tells of an error, unless the next sweep will find the flow in another way.
func (r *Reaper) failed(what string, e *conntrack.Entry, err error) {
	if err != nil && !gone(err) && !errors.Is(err, unix.EEXIST) {
		r.Log.Warn(what, "flow", e.Orig, "error", err)
	}
}
