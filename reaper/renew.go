package reaper

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// renew replaces the entry of a popped item. When a packet was faster, its entry takes the place.
func (r *Reaper) renew(it *item, change func(anew *conntrack.Entry)) error {
	if err := r.Table.Hold(it.entry.Tuples()...); err != nil {
		return err
	}
	anew, err := r.Flows.Renew(&it.entry, change)
	if errors.Is(err, unix.EEXIST) {
		anew, err = r.Flows.Get(it.entry.Orig, it.entry.Zone)
		if err == nil && anew.Orig != it.entry.Orig {
			err = fmt.Errorf("its new entry is the wrong way round")
		}
	}
	if err != nil {
		return err
	}
	r.schedule.become(it, &anew)
	return nil
}

// pinForWindow makes a new entry one whose rule answers from now on.
func pinForWindow(anew *conntrack.Entry) {
	supplyState(anew)
	anew.Status |= conntrack.StatusFixedTimeout
	anew.Timeout = uint32(ctpolicy.Window / time.Second)
}

// unpinned makes a new entry one that packets refresh.
func (r *Reaper) unpinned(anew *conntrack.Entry) {
	supplyState(anew)
	anew.Status &^= conntrack.StatusFixedTimeout
	anew.Timeout = r.Judge.Defaults[conntrack.TimeoutOf(anew.State)]
}

// supplyState is for an entry in a flowtable, which does not tell its state: FIN and RST end that.
func supplyState(anew *conntrack.Entry) {
	if ctpolicy.Offloaded(anew) {
		anew.State = conntrack.StateEstablished
	}
}
