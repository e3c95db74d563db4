package e2e

import (
	"testing"
	"time"
)

// TestGatewayEndsBothEnds is the promise for connections that this host only forwards.
func TestGatewayEndsBothEnds(t *testing.T) {
	g := newGateway(t)
	before := open(t, g.routes, "opened before", traffics...)
	from := time.Now()
	reaper := start(t, g.Gateway, gatewayFlags...)
	// Nobody knows when these were born: their clock starts when the limit is installed.
	for _, s := range before {
		s.born = span{from, time.Now()}
	}
	after := open(t, g.routes, "opened after", traffics...)
	g.mustOwnNoSocket(t)
	mustAllEndWhole(t, limit, before, after)
	t.Logf("%d and %d connections ended at both ends, at most %s and %s late",
		len(before), len(after), latest(before, limit), latest(after, limit))
	g.mustOwnNoSocket(t)
	reaper.stop()
}
