package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"curfew/internal/netnstest"
)

// A gateway is a path whose middle does all kinds of NAT. Curfew runs there and owns no socket.
type gateway struct {
	*netnstest.Path
	routes    []*route // one for each kind of NAT
	uncovered *route   // to a port that no limit covers
}

// gatewayFlags cover all routes.
var gatewayFlags = []string{"--port", natPorts, "--max-age", limit.String()}

// newGateway makes the path, the rules and the servers.
func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := newRouter(t)
	source4, source6 := netip.MustParsePrefix("10.2.0.11/24"), netip.MustParsePrefix("fd00:2::11/64")
	for _, prefix := range []netip.Prefix{source4, source6} {
		if err := g.Gateway.AddAddr(g.Far.A.Dev, prefix); err != nil {
			t.Fatal(err)
		}
	}
	rules := natRules(g.Far.B.Addr4, g.Far.B.Addr6, source4.Addr(), source6.Addr())
	tool(t, g.Gateway, rules, "nft", "-f", "-")
	for _, n := range nats {
		r := &route{name: n.name, client: g.Client, to: g.Far.B, port: n.port, source: n.source}
		if n.toGateway {
			r.to = g.Near.B
		}
		r.servers = listen(t, g.Server, n.serverPort)
		g.routes = append(g.routes, r)
	}
	return g
}

// newRouter makes a path whose middle has no rules at all, so that it does not track connections.
func newRouter(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{Path: netnstest.NewPath(t)}
	g.uncovered = g.plain(t, 9000)
	return g
}

// plain starts servers on one more port, and answers the way there, without NAT.
func (g *gateway) plain(t *testing.T, port uint16) *route {
	t.Helper()
	return &route{
		name: fmt.Sprint("port ", port), client: g.Client, to: g.Far.B, port: port,
		servers: listen(t, g.Server, port),
	}
}

// mustOwnNoSocket checks that curfew stands between the ends and is none of them.
func (g *gateway) mustOwnNoSocket(t *testing.T) {
	t.Helper()
	if list := tool(t, g.Gateway, "", "ss", "-Htan"); strings.TrimSpace(list) != "" {
		t.Errorf("the gateway has sockets:\n%s", list)
	}
}
