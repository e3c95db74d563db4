package reaper

import (
	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// wouldEnd reports a flow whose policy ends nothing, once. The label comes first: a reaper that dies in between has
// reported nothing, rather than twice.
func (r *Reaper) wouldEnd(it *item) {
	r.schedule.drop(it)
	if it.cookie == 0 {
		r.markReported(&it.entry)
	}
	it.settleOpen(MethodReported)
	r.report(it)
}

// markReported labels an entry, so that no later sweep and no later reaper reports its flow again. An entry that was born
// before labels were in use has no room for one: that is known only to this reaper.
func (r *Reaper) markReported(e *conntrack.Entry) {
	label := conntrack.Bits(ctpolicy.LabelReported)
	err := r.Flows.Relabel(e, label, label)
	if err == nil {
		var now conntrack.Entry
		if now, err = r.Flows.Again(e); gone(err) || now.HasLabel(ctpolicy.LabelReported) {
			return
		}
	}
	if err != nil {
		r.Log.Warn("label a connection that was reported", "flow", e.Orig, "error", err)
	}
	r.reported[identityOf(e)] = r.round
}

// spared tells that a flow of a policy in report mode needs no look: it was reported, or it was pinned when the policy
// was still enforced.
func (r *Reaper) spared(p *ctpolicy.Policy, e *conntrack.Entry) bool {
	if p.Enforced() {
		return false
	}
	if e.HasLabel(ctpolicy.LabelReported) || ctpolicy.Pinned(e) {
		return true
	}
	id := identityOf(e)
	_, known := r.reported[id]
	if known {
		r.reported[id] = r.round
	}
	return known
}

// forgetReported drops those that no sweep has seen for a while.
func (r *Reaper) forgetReported() {
	for id, round := range r.reported {
		if round+2 < r.round {
			delete(r.reported, id)
		}
	}
}

// markSockets remembers that a flow without an entry was reported: over loopback both its sockets are here.
func (r *Reaper) markSockets(sockets []socket) {
	for i := range sockets {
		if o := r.orphans[sockets[i].Cookie]; o != nil {
			o.reported = true
		}
	}
}
