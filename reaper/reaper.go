// Package reaper ends flows whose time is up, at both ends: it sweeps the conntrack table, schedules what is due soon,
// pins it in the kernel, strikes at the deadline and forgets. It holds no state that a restarted reaper could not
// find again in the kernel.
package reaper

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// Flows is what the reaper needs of conntrack.
type Flows interface {
	// Dump calls fn for every TCP entry that the filter takes, some perhaps twice. The entry is reused.
	Dump(f conntrack.Filter, fn func(*conntrack.Entry) error) error
	// Get and Again answer conntrack.ErrGone when there is no such entry, or another flow's.
	Get(tuple conntrack.Tuple, zone uint16) (conntrack.Entry, error)
	Again(e *conntrack.Entry) (conntrack.Entry, error)
	Pin(e *conntrack.Entry, seconds uint32) error
	Create(tuple conntrack.Tuple, seconds uint32) error
	// Renew replaces an entry by one with the same tuples and address translation, which change may alter. Its birth is
	// lost. It answers the new entry, or unix.EEXIST when a packet was faster and made one of its own.
	Renew(e *conntrack.Entry, change func(anew *conntrack.Entry)) (conntrack.Entry, error)
	// Assure makes an entry that was picked up in mid-flow one that sweeps look at.
	Assure(e *conntrack.Entry) error
	MarkClosed(e *conntrack.Entry) error
	// Relabel sets the label bits in mask to what they are in value, if the entry has room for labels.
	Relabel(e *conntrack.Entry, value, mask conntrack.Label) error
	Delete(e *conntrack.Entry) error
}

// Sockets is what the reaper needs of this host's sockets.
type Sockets interface {
	// LookupOn never answers a listener; sockdiag.ErrNotFound when there is no such connection. It finds a socket that is
	// bound to a device only by the device's index.
	LookupOn(local, remote netip.AddrPort, ifindex uint32) (sockdiag.Socket, error)
	List(q sockdiag.Query, fn func(*sockdiag.Socket) error) error
	Listeners(fn func(local netip.AddrPort) error) error
	// Destroy ends the socket that was looked up, and none other.
	Destroy(s *sockdiag.Socket) error
}

// A Challenger makes the TCP at to show its sequence numbers, as if from had asked.
type Challenger interface {
	Send(from, to netip.AddrPort, attempt int) error
}

// Table is what the reaper needs of the installed rules. Its methods may be called from another goroutine.
type Table interface {
	// Beat keeps the rules' fallback asleep for a while.
	Beat() error
	// Note keeps a line for the next reaper.
	Note(text string) error
	// Closed tells how long ago the rules last answered a packet from one end of a pinned flow to the other with a reset,
	// after its deadline, or saw a reset from it. ok is false when they have not in the last ctpolicy.Window. The addresses
	// are those that this end knows.
	Closed(from, to netip.AddrPort) (ago time.Duration, ok bool, err error)
	// Hold makes the rules drop packets in mid-flow that conntrack does not know, from and to these ports, for a second:
	// nothing may answer them while an entry is being replaced. TCP sends them again.
	Hold(tuples ...conntrack.Tuple) error
}

// A Reaper ends the flows of one network namespace. Only one goroutine may use it.
type Reaper struct {
	Policies   *ctpolicy.Matcher
	Judge      *ctpolicy.Judge
	Flows      Flows
	Sockets    Sockets
	Challenger Challenger
	Table      Table
	Clock      ctpolicy.Clock
	// Local tells whether an address is this host's own.
	Local func(netip.Addr) bool
	// Adopting is until when the rules pick up flows that conntrack does not know.
	Adopting ctpolicy.Instant
	Log      *slog.Logger
	// Ended is told of every flow that was to be ended; nil is allowed.
	Ended func(*Result)
	// Disturbed delivers when something has happened to entries or rules, so that Run sweeps at once, but not all the time.
	// It should have a buffer of one, to which the sender does not wait to send. nil is allowed.
	Disturbed <-chan struct{}
	// BootID marks the notes.
	BootID string

	schedule *schedule
	seen     seen
	dumped   dumped
	memory   memory
	lost     []lost
	orphans  map[uint64]*orphan
	quiet    map[identity]quiet
	births   map[identity]*origin
	reported map[identity]uint64 // flows whose entry has no room for the label, and the last sweep that saw them
	round    uint64
	listens  [1 << 10]uint64 // local ports that have a listener
	bound    map[end]uint32  // the devices that sockets are bound to; see rememberDevice
	swept    bool            // once at least
	working  atomic.Int64    // since when, as an Instant; 0 while it waits

	// What a look at the table has found that needs to be mended.
	reversed, unassured, early []conntrack.Entry
}

// Init makes the reaper ready for use.
func (r *Reaper) Init() {
	r.schedule = newSchedule()
	r.orphans = map[uint64]*orphan{}
	r.quiet = map[identity]quiet{}
	r.births = map[identity]*origin{}
	r.reported = map[identity]uint64{}
}

// The sweep's interval follows from the shortest limit.
const (
	minInterval = 200 * time.Millisecond
	maxInterval = time.Minute
	beatEvery   = 3 * time.Second
	clockEvery  = time.Second      // two steps of the clock between two looks could not be told apart
	hung        = 10 * time.Second // a sweep that takes this long
)

// Interval is the time between sweeps: four for each lead. A pin is sent a whole number of seconds before the deadline, so
// with a limit of 3 s a flow must be seen between 1.5 and 1 s before it.
func (r *Reaper) Interval() time.Duration {
	return min(max(r.Policies.Lead()/4, minInterval), maxInterval)
}

// Run sweeps and strikes until the context ends. Errors are logged and the next sweep tries again: a reaper that stops
// at the first error would let flows overstay.
func (r *Reaper) Run(ctx context.Context) {
	beating := make(chan struct{})
	go func() { defer close(beating); r.beat(ctx) }()
	defer func() { <-beating }()

	next := pace{at: r.now()}
	for ctx.Err() == nil {
		now := r.now()
		r.working.Store(int64(now))
		if now >= next.at {
			if err := r.Sweep(); err != nil {
				r.Log.Error("sweep", "error", err)
			}
			next.sweptFrom(now, r.now(), r.Interval())
		}
		r.serve()
		r.working.Store(0)
		disturbed := r.Disturbed
		if next.early {
			disturbed = nil // one is as good as many
		}
		if r.wait(ctx, min(next.at, r.nextAt(next.at), now.Add(clockEvery)), disturbed) {
			next.disturb()
		}
		r.observeClock()
	}
}

func (r *Reaper) now() ctpolicy.Instant { return r.Clock.Now().Boot }

func (r *Reaper) nextAt(otherwise ctpolicy.Instant) ctpolicy.Instant {
	if it := r.schedule.next(); it != nil {
		return it.at
	}
	return otherwise
}

// wait tells whether something was disturbed meanwhile.
func (r *Reaper) wait(ctx context.Context, until ctpolicy.Instant, disturbed <-chan struct{}) bool {
	timer := time.NewTimer(until.Sub(r.now()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case _, ok := <-disturbed:
		if !ok {
			r.Disturbed = nil
		}
		return ok
	}
	return false
}

// beat keeps the heartbeat going, unless the sweeping hangs: then the fallback must wake. It has its own goroutine,
// because a transaction takes milliseconds.
func (r *Reaper) beat(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if since := r.working.Load(); since != 0 && r.now().Sub(ctpolicy.Instant(since)) > hung {
			r.Log.Error("a sweep hangs: the rules take over", "for", r.now().Sub(ctpolicy.Instant(since)))
			continue
		}
		err := r.Table.Beat()
		if err != nil && !lost {
			r.Log.Error("the rules are gone: only this reaper enforces limits now; send SIGHUP or run `curfew apply` to install them again",
				"error", err)
		}
		lost = err != nil
	}
}

// serve does everything that is due.
func (r *Reaper) serve() {
	for {
		it := r.schedule.next()
		if it == nil || it.at > r.now() {
			return
		}
		r.advance(r.schedule.pop())
	}
}

// Drain serves the schedule until all flows in it are pinned or ended; those that are only waiting for their deadline,
// and survivors, are left to the kernel and to the next pass. It does not wait to delete the entries of ended flows: without a reaper
// alive the stray rule answers what is still on its way.
func (r *Reaper) Drain(ctx context.Context) {
	for it := r.pending(); it != nil && ctx.Err() == nil; it = r.pending() {
		r.wait(ctx, it.at, nil)
		r.serve()
	}
}

// pending is the next item that Drain has to wait for, or nil.
func (r *Reaper) pending() *item {
	for {
		it := r.schedule.next()
		switch {
		case it == nil:
			return nil
		case it.waits() && it.at > r.now():
			r.schedule.drop(r.schedule.pop())
		case it.step == stepForget:
			r.advance(r.schedule.pop())
		default:
			return it
		}
	}
}

// Scheduled is the number of flows that are due within lead.
func (r *Reaper) Scheduled() int { return r.schedule.len() }

// gone tells that an entry does not exist any more, which is no error.
func gone(err error) bool { return errors.Is(err, conntrack.ErrGone) }
