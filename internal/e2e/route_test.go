package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// An ipFamily is IPv4 or IPv6.
type ipFamily struct {
	name string
	v6   bool
}

var families = []ipFamily{{"IPv4", false}, {"IPv6", true}}

// of picks the family's address.
func (f ipFamily) of(v4, v6 netip.Addr) netip.Addr {
	if f.v6 {
		return v6
	}
	return v4
}

// listen starts a server for each family.
func listen(t *testing.T, h *netnstest.Host, port uint16) (servers [2]*netnstest.Server) {
	t.Helper()
	servers[0] = h.Listen(t, "tcp4", fmt.Sprintf("0.0.0.0:%d", port))
	servers[1] = h.Listen(t, "tcp6", fmt.Sprintf("[::]:%d", port))
	return servers
}

// A route is what a client dials, and which server answers.
type route struct {
	name    string
	client  *netnstest.Host
	to      netnstest.End // its addresses are dialed
	port    uint16
	servers [2]*netnstest.Server // IPv4, IPv6
	source  bool                 // the server does not see the client's address and port
	local   bool                 // an end is a socket of curfew's host
}

// connect opens a connection. It knows the server's end by the order of the connections, so there is one at a time.
func (r *route) connect(t *testing.T, f ipFamily, opts netnstest.DialOptions) *pair {
	t.Helper()
	p, err := r.tryConnect(f, opts)
	if err != nil {
		t.Fatalf("%s, %s: %v", f.name, r.name, err)
	}
	return p
}

// tryConnect is connect for goroutines, which must not end the test.
func (r *route) tryConnect(f ipFamily, opts netnstest.DialOptions) (*pair, error) {
	accepting := r.servers[0]
	if f.v6 {
		accepting = r.servers[1]
	}
	from := time.Now()
	client, err := r.client.Connect("tcp", netip.AddrPortFrom(f.of(r.to.Addr4, r.to.Addr6), r.port).String(), opts)
	if err != nil {
		return nil, err
	}
	server, err := accepting.Accept(patience)
	if err != nil {
		return nil, err
	}
	if other := server.RemoteAddr() != client.LocalAddr(); other != r.source {
		return nil, fmt.Errorf("the client is %s, and the server sees %s", client.LocalAddr(), server.RemoteAddr())
	}
	return &pair{fmt.Sprintf("%s, %s", f.name, r.name), client, server, span{from, time.Now()}}, nil
}

// open opens a connection of each kind of traffic, in each family, on each route.
func open(t *testing.T, routes []*route, when string, kinds ...traffic) (list []*stream) {
	t.Helper()
	for _, f := range families {
		for _, r := range routes {
			for _, k := range kinds {
				s := newStream(t, r.connect(t, f, netnstest.DialOptions{}), k)
				s.name += ", " + when
				s.local = r.local
				list = append(list, s)
			}
		}
	}
	for _, s := range list {
		eventually(t, s.name+": the first bytes", func() bool {
			return s.client.Received() >= hello && s.server.Received() >= hello
		})
	}
	return list
}
