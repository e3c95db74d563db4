package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// A gateway is a path whose middle does all kinds of NAT. Curfew runs there and owns no socket.
type gateway struct {
	*netnstest.Path
	servers map[string]*netnstest.Server
}

// openPort is a port of the server that no limit covers.
const openPort = 9000

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
		g.listen(t, n.serverPort)
	}
	return g
}

// newRouter makes a path whose middle has no rules at all, so that it does not track connections.
func newRouter(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{netnstest.NewPath(t), map[string]*netnstest.Server{}}
	g.listen(t, openPort)
	return g
}

// listen starts a server for each family.
func (g *gateway) listen(t *testing.T, port uint16) {
	t.Helper()
	for _, f := range families {
		network, address := f.listen(port)
		g.servers[network+fmt.Sprint(port)] = g.Server.Listen(t, network, address)
	}
}

func (g *gateway) server(f ipFamily, port uint16) *netnstest.Server {
	network, _ := f.listen(port)
	return g.servers[network+fmt.Sprint(port)]
}

// plain is the way to a port without NAT.
func plain(port uint16) nat {
	return nat{name: fmt.Sprint("port ", port), port: port, serverPort: port}
}

// dials is the address that clients dial.
func (g *gateway) dials(f ipFamily, n nat) netip.AddrPort {
	end := g.Far.B
	if n.toGateway {
		end = g.Near.B
	}
	return netip.AddrPortFrom(f.of(end.Addr4, end.Addr6), n.port)
}

// connect opens a connection through the gateway, one at a time for each server: the next that it accepts is the one.
func (g *gateway) connect(t *testing.T, f ipFamily, n nat, opts netnstest.DialOptions) *pair {
	t.Helper()
	from := time.Now()
	client := g.Client.Dial(t, "tcp", g.dials(f, n).String(), opts)
	server := g.server(f, n.serverPort).Next(t)
	if sees := server.RemoteAddr() != client.LocalAddr(); sees != n.source {
		t.Fatalf("%s, %s: the client is %s, and the server sees %s", f.name, n.name, client.LocalAddr(), server.RemoteAddr())
	}
	return &pair{fmt.Sprintf("%s, %s", f.name, n.name), client, server, span{from, time.Now()}}
}

// open opens a connection of each kind of traffic, in each family, through each kind of NAT.
func (g *gateway) open(t *testing.T, when string, kinds ...traffic) (list []*stream) {
	t.Helper()
	for _, f := range families {
		for _, n := range nats {
			for _, k := range kinds {
				s := newStream(t, g.connect(t, f, n, netnstest.DialOptions{}), k)
				s.name += ", " + when
				list = append(list, s)
			}
		}
	}
	return list
}

// mustOwnNoSocket checks that curfew stands between the ends and is none of them.
func (g *gateway) mustOwnNoSocket(t *testing.T) {
	t.Helper()
	if list := tool(t, g.Gateway, "", "ss", "-Htan"); strings.TrimSpace(list) != "" {
		t.Errorf("the gateway has sockets:\n%s", list)
	}
}
