package reaper

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// renew replaces the entry of a popped item. When a packet was faster, its entry takes the place, unless it is the wrong way
// round: then that one is replaced.
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
			r.schedule.become(it, &anew)
			r.bear(&anew, it.birth)
			return nil
		}
		if !errors.Is(err, unix.EEXIST) || try == maxTries {
			return err
		}
		if e, err = r.Flows.Get(orig, it.entry.Zone); err != nil {
			return err
		}
		if !ctpolicy.MidFlow(&e) {
			return conntrack.ErrGone // that of a new connection
		}
		if e.Orig == orig {
			r.schedule.become(it, &e)
			r.bear(&e, it.birth)
			return nil
		}
	}
}

// pinForWindow makes a new entry one whose rule answers from now on.
func pinForWindow(anew *conntrack.Entry) {
	supplyState(anew)
	anew.Status |= conntrack.StatusFixedTimeout
	anew.Timeout = uint32(ctpolicy.Window / time.Second)
}

// unpinned makes a new entry one that packets refresh. It has no ct timeout object.
func (r *Reaper) unpinned(anew *conntrack.Entry) {
	supplyState(anew)
	anew.Label.Clear(ctpolicy.LabelTracked)
	anew.Status &^= conntrack.StatusFixedTimeout
	anew.Timeout = r.Judge.Defaults[conntrack.TimeoutOf(anew.State)]
}

// supplyState is for an entry in a flowtable, which does not tell its state: FIN and RST end that.
func supplyState(anew *conntrack.Entry) {
	if ctpolicy.Offloaded(anew) {
		anew.State = conntrack.StateEstablished
	}
}
