package reaper

import (
	"errors"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// retried tells that an entry is older than its flow: a client that has dialled in vain from one port for hours keeps one
// entry all that time. Its flow is not judged before it has an entry of its own. A pin can't be changed any more.
func (r *Reaper) retried(e *conntrack.Entry) bool {
	return e.HasLabel(ctpolicy.LabelRetried) && ctpolicy.Open(e) && !ctpolicy.Pinned(e) && r.originOf(e) == nil
}

// renewRetried gives a flow an entry that is born now. Where that can't be, this reaper remembers the birth: late rather
// than early.
func (r *Reaper) renewRetried(e *conntrack.Entry) {
	_, err := r.Flows.Renew(e, func(anew *conntrack.Entry) {
		r.unpinned(anew)
		anew.Label.Clear(ctpolicy.LabelRetried)
	})
	switch {
	case err == nil:
		r.Log.Debug("renewed an entry that was older than its flow", "flow", e.Orig)
	case gone(err), errors.Is(err, unix.EEXIST):
	default:
		r.Log.Warn("renew an entry that is older than its flow", "flow", e.Orig, "error", err)
		r.bear(e, r.now())
	}
}
