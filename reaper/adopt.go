package reaper

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// Adopt makes entries for covered sockets that conntrack does not know, or knows the wrong way round: it takes the
// first packet that it sees for the client's. Their age counts from now. It answers how many it made.
func (r *Reaper) Adopt() (adopted int, err error) {
	return r.adoptUnless(r.Policies.HasIdle(), func(*sockdiag.Socket, conntrack.Tuple, *ctpolicy.Policy) bool { return false })
}

// adoptUnless leaves out sockets for which a condition holds, which may need to know the sockets' pauses.
func (r *Reaper) adoptUnless(info bool, condition func(*sockdiag.Socket, conntrack.Tuple, *ctpolicy.Policy) bool) (adopted int, err error) {
	if err := r.lookAround(func(*conntrack.Entry) {}); err != nil {
		return 0, fmt.Errorf("adopt open connections: %w", err)
	}
	var unknown []conntrack.Tuple
	err = r.coveredSockets(info, func(s *sockdiag.Socket, tuple conntrack.Tuple, p *ctpolicy.Policy) error {
		if !p.Enforced() || r.seen.has(tuple) {
			return nil
		}
		r.seen.add(tuple) // over loopback both ends are here
		if !condition(s, tuple, p) {
			unknown = append(unknown, tuple)
		}
		return nil
	})
	for _, tuple := range unknown {
		made, one := r.adopt(tuple, r.Judge.Defaults[conntrack.TimeoutEstablished])
		if one != nil {
			err = errors.Join(err, one)
		} else if made {
			adopted++
		}
	}
	if err != nil {
		err = fmt.Errorf("adopt open connections: %w", err)
	}
	return adopted, err
}

// lookAround calls fn for every covered entry, whatever its state, and remembers them all.
func (r *Reaper) lookAround(fn func(*conntrack.Entry)) error {
	r.observeClock()
	r.seen.reset()
	err := r.Flows.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		p := r.Policies.Flow(e)
		r.notice(e, p)
		if p != nil {
			r.seen.add(e.Orig)
			fn(e)
		}
		return nil
	})
	r.mend()
	return err
}

// adopt makes one entry, for some seconds if no packet comes. Packets of the connection may make one too at any time.
func (r *Reaper) adopt(tuple conntrack.Tuple, seconds uint32) (made bool, err error) {
	for range maxTries {
		e, err := r.Flows.Get(tuple, 0)
		if err == nil && e.Orig == tuple {
			return false, nil
		}
		if gone(err) && r.redirected(tuple) {
			return false, nil
		}
		if err == nil {
			err = r.Flows.Delete(&e)
		}
		if err != nil && !gone(err) {
			return false, err
		}
		err = r.Flows.Create(tuple, seconds)
		if !errors.Is(err, unix.EEXIST) {
			return err == nil, err
		}
	}
	return false, fmt.Errorf("entry of %s is made anew again and again", tuple)
}

// PinAll schedules a pin for every covered flow whose handshake is complete, so that the kernel alone ends them: of a
// handshake that fails, the pinned entry would pass its deadline on to the next connection from its port. Flows whose time is up already are struck. It answers how many flows no pin can help: those of policies
// without max_age or with a rate, those whose deadline is too far away, and those in a flowtable. Drain does the work.
func (r *Reaper) PinAll() (without int, err error) {
	now := r.now()
	err = r.lookAround(func(e *conntrack.Entry) {
		const answered = conntrack.StatusSeenReply
		if ctpolicy.Pinned(e) || !ctpolicy.MidFlow(e) || e.Status&answered == 0 || r.schedule.has(e) || r.retried(e) {
			return
		}
		p := r.Policies.Flow(e)
		if !p.Enforced() || !p.Ends() {
			return
		}
		_, hard := p.AgeEnds(e.Orig, r.birth(e, now))
		d := ctpolicy.Deadline{At: hard, Cause: ctpolicy.CauseMaxAge}
		if _, ok := ctpolicy.PinTimeout(d.At, now); !ok || p.MaxAge == 0 || !pinnable(p, e) || (ctpolicy.Offloaded(e) && now < d.At) {
			without++
			return
		}
		it := &item{entry: *e, policy: p, deadline: d, birth: r.birth(e, now), step: stepPin, forced: true}
		it.at = ctpolicy.PinAt(d.At, now)
		r.schedule.add(it)
	})
	if err != nil {
		err = fmt.Errorf("pin open connections: %w", err)
	}
	return without, err
}

// EndAll schedules the end of every covered flow that is open now.
func (r *Reaper) EndAll() error {
	now := r.now()
	err := r.lookAround(func(e *conntrack.Entry) {
		p := r.Policies.Flow(e)
		if !ctpolicy.MidFlow(e) || !p.Enforced() {
			return
		}
		r.schedule.add(&item{
			entry: *e, policy: p, birth: r.birth(e, now),
			deadline: ctpolicy.Deadline{At: now, Cause: CauseExisting, Passed: true}, step: stepStrike, forced: true, at: now,
		})
	})
	if err != nil {
		err = fmt.Errorf("end open connections: %w", err)
	}
	return err
}

// CauseExisting is the cause of an end by EndAll.
const CauseExisting ctpolicy.Cause = "existing"
