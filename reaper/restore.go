package reaper

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

const (
	// restoreFor is how long one sweep may give ages back; the others have to wait for the next one.
	restoreFor = 2 * time.Second
	// minRestored is how long a new entry lasts at least, whose flow has paused for longer than entries do. In seconds.
	minRestored = 10
)

// A lost flow has a socket here, and no entry or one that is too young: somebody has deleted the entry.
type lost struct {
	socket end
	cookie uint64
	tuple  conntrack.Tuple
	policy *ctpolicy.Policy
	born   ctpolicy.Instant
	start  int64 // of the entry that it had
	make   bool  // the entry that it had can be made again
	pause  time.Duration
	due    *item // how it ends without an entry, if it is due; or nil
}

// lose notes that the flow of a socket has lost its entry.
func (r *Reaper) lose(s *sockdiag.Socket, tuple conntrack.Tuple, p *ctpolicy.Policy, t *trace, due *item) {
	l := lost{socket: end{s.Local, s.Remote}, cookie: s.Cookie, tuple: tuple, policy: p, due: due}
	if t != nil {
		l.born, l.start = r.born(t), t.start
		l.make = t.start != 0 && t.plain && t.client == (tuple.Src == s.Local)
	}
	if pause, ok := pauseOf(s); ok {
		l.pause = pause
	}
	r.lost = append(r.lost, l)
}

// restoreAll gives lost flows their ages back, those first that are due first.
func (r *Reaper) restoreAll() {
	slices.SortFunc(r.lost, func(a, b lost) int {
		return cmp.Compare(a.born.Add(a.policy.MaxAge), b.born.Add(b.policy.MaxAge))
	})
	until := r.now().Add(restoreFor)
	for i := range r.lost {
		if i%serveEvery == serveEvery-1 {
			r.serve()
		}
		l := &r.lost[i]
		switch {
		case l.born != 0 && l.policy.MaxAge > 0 && l.policy.Enforced() && r.now() < until && r.restore(l):
			delete(r.orphans, l.cookie)
		case l.due != nil:
			r.schedule.add(l.due)
		}
	}
	clear(r.lost)
	r.lost = r.lost[:0]
}

// restore finds or makes the entry of a lost flow, keeps its birth and judges it. The socket is looked up before and after
// that: an entry in between is no other connection's.
func (r *Reaper) restore(l *lost) bool {
	if cookie, err := r.openSocket(l.socket); err != nil || cookie != l.cookie {
		return false
	}
	e, made, err := r.entryOf(l)
	if err != nil {
		if !gone(err) {
			r.Log.Warn("make the entry of a connection again", "flow", l.tuple, "error", err)
		}
		return false
	}
	if cookie, err := r.openSocket(l.socket); err != nil || cookie != l.cookie {
		// What was made is nobody's, unless the next connection has come already, whose handshake would have been seen.
		if err == nil && made && cookie == 0 && e.OrigFlags&e.ReplyFlags&conntrack.FlagLiberal != 0 {
			r.deleteEntry(&e)
		}
		return false
	}
	if e.Status&conntrack.StatusAssured == 0 {
		r.assure(&e)
		e.Status |= conntrack.StatusAssured
	}
	if now := r.now(); r.Judge.Birth(&e, now) > l.born || e.HasLabel(ctpolicy.LabelRetried) {
		r.bear(&e, l.born)
	}
	if t := r.memory.find(l.cookie); t != nil {
		t.told = e.Start
	}
	r.Log.Debug("found a connection whose entry was lost", "flow", l.tuple, "made", made)
	r.consider(&e, r.now())
	return true
}

// openSocket is the cookie of the open socket that is an end; 0 when there is none.
func (r *Reaper) openSocket(e end) (cookie uint64, err error) {
	s, err := r.lookupEnd(e)
	if errors.Is(err, sockdiag.ErrNotFound) || err == nil && openSockets&sockdiag.States(s.State) == 0 {
		return 0, nil
	}
	return s.Cookie, err
}

// entryOf answers conntrack.ErrGone when the flow has no entry that is its own, and none can be made. One that was translated
// can't: without its translation it would break the connection. One the wrong way round gives way, as in Adopt.
func (r *Reaper) entryOf(l *lost) (e conntrack.Entry, made bool, err error) {
	e, err = r.Flows.Get(l.tuple, 0)
	switch {
	case err == nil && ownEntry(&e, l.tuple):
		return e, false, nil
	case err != nil && !gone(err):
		return e, false, err
	case !l.make, err == nil && (e.Orig == l.tuple || !ctpolicy.MidFlow(&e) || e.Zone|e.ReplyZone != 0 ||
		e.Status&conntrack.StatusNAT != 0 || e.Start == l.start):
		return e, false, conntrack.ErrGone
	}
	seconds := r.Judge.Defaults[conntrack.TimeoutEstablished]
	if made, err = r.adopt(l.tuple, max(seconds-min(seconds, uint32(l.pause/time.Second)), minRestored)); err != nil {
		return e, made, err
	}
	e, err = r.Flows.Get(l.tuple, 0)
	if err == nil && !ownEntry(&e, l.tuple) {
		err = conntrack.ErrGone
	}
	return e, made, err
}

// ownEntry tells that an entry of an open socket's tuple can be that socket's.
func ownEntry(e *conntrack.Entry, tuple conntrack.Tuple) bool {
	return e.Orig == tuple && ctpolicy.MidFlow(e) && e.Zone|e.ReplyZone == 0
}
