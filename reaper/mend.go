package reaper

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

const (
	maxMended  = 1000 // in one sweep
	turnAtOnce = 100
)

// notice remembers what conntrack made of a packet in mid-flow: an entry that is not assured yet, which sweeps pass over, or
// one the wrong way round, of a packet of the server, which no policy seems to cover. For flows with a socket here Adopt
// and sweepSockets find the right way. It also remembers entries that are older than their flows.
func (r *Reaper) notice(e *conntrack.Entry, p *ctpolicy.Policy) {
	switch {
	case len(r.reversed)+len(r.unassured)+len(r.early) >= maxMended:
	case p != nil && p.Enforced() && r.retried(e):
		r.early = append(r.early, *e)
	case p != nil && p.Enforced() && ctpolicy.PickedUp(e):
		r.unassured = append(r.unassured, *e)
	case p == nil && ctpolicy.MidFlow(e):
		if p := r.Policies.Reversed(e); p != nil && p.Enforced() {
			r.reversed = append(r.reversed, *e)
		}
	}
}

// mend assures, turns and renews what was noticed.
func (r *Reaper) mend() {
	for i := range r.unassured {
		r.assure(&r.unassured[i])
	}
	r.replace(r.reversed, "turn entries that are the wrong way round", r.turn)
	r.replace(r.early, "renew entries that are older than their flows", r.renewRetried)
	r.reversed, r.unassured, r.early = r.reversed[:0], r.unassured[:0], r.early[:0]
}

func (r *Reaper) assure(e *conntrack.Entry) {
	if err := r.Flows.Assure(e); err != nil && !gone(err) {
		r.Log.Warn("assure an entry that was picked up", "flow", e.Orig, "error", err)
	}
}

// replace does something with each entry while packets of its flow are held.
func (r *Reaper) replace(entries []conntrack.Entry, purpose string, do func(*conntrack.Entry)) {
	for part := range slices.Chunk(entries, turnAtOnce) {
		if err := r.Table.Hold(tuplesOf(part)...); err != nil {
			r.Log.Warn(purpose, "error", err)
			return
		}
		for i := range part {
			do(&part[i])
		}
		r.serve()
	}
}

func tuplesOf(entries []conntrack.Entry) (tuples []conntrack.Tuple) {
	for i := range entries {
		tuples = append(tuples, entries[i].Tuples()...)
	}
	return tuples
}

// turn turns an entry around. The flow's clock starts now.
func (r *Reaper) turn(e *conntrack.Entry) {
	_, err := r.Flows.Renew(e, func(anew *conntrack.Entry) {
		r.unpinned(anew)
		anew.Reverse()
		anew.Label = r.Policies.Labels(anew)
	})
	switch {
	case err == nil:
		r.Log.Debug("turned an entry that was the wrong way round", "flow", e.Reply)
	case !gone(err) && !errors.Is(err, unix.EEXIST):
		r.Log.Warn("turn an entry that is the wrong way round", "flow", e.Reply, "error", err)
	}
}
