package e2e

import "testing"

// gatewayFlags cover all kinds of NAT.
var gatewayFlags = []string{"--port", natPorts, "--max-age", limit.String()}

// TestGatewayEndsBothEnds is the promise for connections that this host only forwards.
func TestGatewayEndsBothEnds(t *testing.T) {
	g := newGateway(t)
	reaper := start(t, g.Gateway, gatewayFlags...)
	g.mustOwnNoSocket(t)
	streams := g.open(t, "opened after", traffics...)
	mustAllEndWhole(t, streams, limit)
	t.Logf("%d connections ended at both ends, at most %s late", len(streams), latest(streams, limit))
	g.mustOwnNoSocket(t)
	reaper.stop()
}
