package e2e

import (
	"net/netip"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// localNAT sends what comes for port 80 to a local server, and what local programs send to a service's address to the
// server far away.
const localNAT = `
table inet site {
	chain incoming {
		type nat hook prerouting priority dstnat;
		tcp dport 80 redirect to :8080
	}
	chain outgoing {
		type nat hook output priority -100;
		ip daddr 10.99.0.1 tcp dport 81 dnat ip to 10.2.0.2:9081
		ip6 daddr fd00:99::1 tcp dport 81 dnat ip6 to [fd00:2::2]:9081
	}
}
`

// TestLocalEndsBehindNAT has one end on curfew's host, which knows other addresses than the wire.
func TestLocalEndsBehindNAT(t *testing.T) {
	t.Parallel()
	g := newRouter(t)
	if err := g.Gateway.RouteVia(g.Far.B); err != nil {
		t.Fatal(err)
	}
	tool(t, g.Gateway, localNAT, "nft", "-f", "-")
	service := netnstest.End{Addr4: netip.MustParseAddr("10.99.0.1"), Addr6: netip.MustParseAddr("fd00:99::1")}
	routes := []*route{
		{name: "redirected to a local server", client: g.Client, to: g.Near.B, port: 80, servers: listen(t, g.Gateway, 8080), local: true},
		{name: "local client through DNAT", client: g.Gateway, to: service, port: 81, servers: listen(t, g.Server, 9081), local: true},
	}
	before := open(t, routes, "opened before", traffics...)
	from := time.Now()
	reaper := start(t, g.Gateway, "--port", "80,81", "--max-age", limit.String())
	for _, s := range before {
		s.born = span{from, time.Now()}
	}
	after := open(t, routes, "opened after", traffics...)
	mustAllEndWhole(t, limit, before, after)
	reaper.stop()
}
