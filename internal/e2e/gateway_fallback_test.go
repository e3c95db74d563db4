package e2e

import (
	"testing"
	"time"
)

// TestGatewayFallback has the kernel alone end what talks in both directions.
func TestGatewayFallback(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	busy := traffics[0]
	before := open(t, g.routes, "opened before", busy)
	from := time.Now()
	succeed(t, g.Gateway, append([]string{"apply"}, gatewayFlags...)...)
	for _, s := range before {
		s.born = span{from, time.Now()}
	}
	after := open(t, g.routes, "opened after", busy)
	mustAllEndWhole(t, limit, before, after)
	t.Logf("without a process: at most %s and %s late", latest(before, limit), latest(after, limit))
}
