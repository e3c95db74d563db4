package e2e

import (
	"net/netip"
	"testing"
)

// TestGatewayBystanders has other traffic go through the gateway while it ends connections. Nothing of it is lost.
func TestGatewayBystanders(t *testing.T) {
	t.Parallel()
	const pings = 800 // for four seconds
	g := newGateway(t)
	echoServer(t, g.Server, 7000)
	before := open(t, []*route{g.uncovered}, "opened before", traffics...)

	var echoes []*echo
	var pingers []*pinger
	for _, end := range []netip.Addr{g.Far.B.Addr4, g.Far.B.Addr6} {
		echoes = append(echoes, startEcho(t, g.Client, netip.AddrPortFrom(end, 7000)))
		pingers = append(pingers, startPing(t, g.Client, end, pings))
	}
	reaper := start(t, g.Gateway, gatewayFlags...)
	covered := open(t, g.routes, "covered", traffics...)
	after := open(t, []*route{g.uncovered}, "opened after", traffics...)
	mustAllEndWhole(t, limit, covered)
	reaper.stop()
	succeed(t, g.Gateway, "remove")

	for _, p := range pingers {
		p.finish(t, pings)
	}
	for _, e := range echoes {
		e.finish(t)
	}
	mustGoOn(t, append(before, after...))
}
