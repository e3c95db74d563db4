package reaper

import (
	"time"

	"curfew/ctpolicy"
)

const (
	// disturbedEvery is the time between two sweeps at least, however often something happens to the entries or rules.
	disturbedEvery = 100 * time.Millisecond
	// disturbedShare keeps sweeps of a large table from following each other: they rest this many times longer than they take.
	disturbedShare = 3
)

// A pace says when to sweep: at intervals, and soon after a disturbance.
type pace struct {
	at    ctpolicy.Instant // the next sweep
	ready ctpolicy.Instant // from when a disturbance may bring it forward
	swept bool
	early bool // a disturbance has
}

// sweptFrom takes note of a sweep. A second one follows the first soon: what sockets are older than their entries say is
// known when two sweeps have seen them.
func (p *pace) sweptFrom(from, to ctpolicy.Instant, interval time.Duration) {
	if !p.swept {
		interval = min(interval, minInterval)
	}
	p.swept, p.early = true, false
	p.at = from.Add(interval)
	p.ready = max(from.Add(disturbedEvery), to.Add(disturbedShare*to.Sub(from)))
}

// disturb brings the next sweep forward.
func (p *pace) disturb() {
	p.early = true
	p.at = min(p.at, p.ready)
}
