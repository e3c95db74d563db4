package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"curfew/internal/netnstest"
)

// scopes are policies that cover some connections only. Each gets a port of its own.
var scopes = []struct {
	name    string
	flags   []string
	covered []string
}{
	{"forwarded", []string{"--direction", "forwarded"}, []string{"forwarded", "guest"}},
	{"inbound", []string{"--direction", "inbound"}, []string{"inbound"}},
	{"outbound", []string{"--direction", "outbound"}, []string{"outbound"}},
	{"except clients", []string{"--except", "10.1.0.9/32,fd00:1::9"}, []string{"forwarded", "inbound", "outbound"}},
	{"except servers", []string{"--except", "10.1.0.2,fd00:1::2/128"}, []string{"forwarded", "guest", "outbound"}},
	{"from addresses", []string{"--from", "10.1.0.9,fd00:1::9/128"}, []string{"guest"}},
	{"from networks", []string{"--from", "10.2.0.0/24,fd00:2::/64"}, []string{"outbound"}},
	{"to", []string{"--to", "10.2.0.0/24,fd00:2::2"}, []string{"forwarded", "guest", "outbound"}},
	{
		"all",
		[]string{
			"--direction", "forwarded", "--from", "10.1.0.0/16,fd00:1::/32",
			"--to", "10.2.0.2,fd00:2::2", "--except", "10.1.0.9,fd00:1::9",
		},
		[]string{"forwarded"},
	},
}

// The second address of the client.
var (
	guest4 = netip.MustParsePrefix("10.1.0.9/24")
	guest6 = netip.MustParsePrefix("fd00:1::9/64")
)

// scopeRoutes go through the gateway, to it, and from it.
func (g *gateway) scopeRoutes(t *testing.T, port uint16) []*route {
	t.Helper()
	far, here := listen(t, g.Server, port), listen(t, g.Gateway, port)
	return []*route{
		{name: "forwarded", client: g.Client, to: g.Far.B, port: port, servers: far},
		{name: "inbound", client: g.Client, to: g.Near.B, port: port, servers: here, local: true},
		{name: "outbound", client: g.Gateway, to: g.Far.B, port: port, servers: far, local: true},
	}
}

// openScope opens connections on each route, and on the forwarded one also from the client's second address.
func openScope(t *testing.T, routes []*route, kinds ...traffic) map[string][]*stream {
	t.Helper()
	byRoute := map[string][]*stream{}
	for _, r := range routes {
		byRoute[r.name] = open(t, []*route{r}, "first address", kinds...)
	}
	for _, f := range families {
		from := netip.AddrPortFrom(f.of(guest4.Addr(), guest6.Addr()), 0)
		for _, k := range kinds {
			p := routes[0].connect(t, f, netnstest.DialOptions{From: from})
			p.name += ", guest"
			byRoute["guest"] = append(byRoute["guest"], newStream(t, p, k))
		}
	}
	return byRoute
}

// TestScope says in flags which connections are covered, and leaves the others alone.
func TestScope(t *testing.T) {
	t.Parallel()
	g := newRouter(t)
	for _, prefix := range []netip.Prefix{guest4, guest6} {
		if err := g.Client.AddAddr(g.Near.A.Dev, prefix); err != nil {
			t.Fatal(err)
		}
	}
	var flags []string
	var routes [][]*route
	for i, c := range scopes {
		port := uint16(8081 + i)
		routes = append(routes, g.scopeRoutes(t, port))
		flags = append(flags, append([]string{"--port", fmt.Sprint(port), "--max-age", limit.String()}, c.flags...)...)
	}
	start(t, g.Gateway, flags...)

	var covered, others []*stream
	for i, c := range scopes {
		for name, list := range openScope(t, routes[i], traffics[0], traffics[3]) {
			for _, s := range list {
				s.name = fmt.Sprintf("scope %q: %s", c.name, s.name)
			}
			if slices.Contains(c.covered, name) {
				covered = append(covered, list...)
			} else {
				others = append(others, list...)
			}
		}
	}
	slices.SortFunc(covered, func(a, b *stream) int { return a.born.from.Compare(b.born.from) })
	mustAllEndWhole(t, limit, covered)
	sleepUntil(others[len(others)-1].born.to.Add(limit + late))
	mustGoOn(t, others)
}
