package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// A topology says where curfew runs, and where the two ends are.
type topology struct {
	name                 string
	curfew               *netnstest.Host
	client, server       *netnstest.Host
	address4, address6   netip.Addr
	uncovered, v4, v6, d *netnstest.Server
}

// topologies are server here, client here, both here.
func topologies(t *testing.T) map[string]func(t *testing.T) *topology {
	linked := func(serverHere bool) func(t *testing.T) *topology {
		return func(t *testing.T) *topology {
			here, there := netnstest.NewHost(t, "here"), netnstest.NewHost(t, "there")
			netnstest.Link(t, here, there, 1)
			if serverHere {
				return &topology{curfew: here, server: here, client: there, address4: here.Addr4(), address6: here.Addr6()}
			}
			return &topology{curfew: here, server: there, client: here, address4: there.Addr4(), address6: there.Addr6()}
		}
	}
	return map[string]func(t *testing.T) *topology{
		"server here": linked(true),
		"client here": linked(false),
		"both here": func(t *testing.T) *topology {
			h := netnstest.NewHost(t, "host")
			return &topology{curfew: h, server: h, client: h, address4: netip.MustParseAddr("127.0.0.1"), address6: netip.IPv6Loopback()}
		},
	}
}

func (top *topology) listen(t *testing.T) {
	top.v4 = top.server.Listen(t, "tcp4", "0.0.0.0:8081")
	top.v6 = top.server.Listen(t, "tcp6", "[::]:8082")
	top.d = top.server.Listen(t, "tcp", "[::]:8083")
	top.uncovered = top.server.Listen(t, "tcp", "[::]:9000")
}

// open opens a busy and an idle connection for each family, from source ports that start at base.
func (top *topology) open(t *testing.T, when string, base uint16) []*pair {
	t.Helper()
	var pairs []*pair
	for _, way := range []struct {
		name    string
		server  *netnstest.Server
		address netip.Addr
	}{
		{"IPv4", top.v4, top.address4},
		{"IPv6", top.v6, top.address6},
		{"IPv4 on a dual-stack socket", top.d, top.address4},
	} {
		for _, busy := range []bool{false, true} {
			p := connect(t, top.client, way.server, way.address, netnstest.FromPort(base+uint16(len(pairs))))
			p.name = fmt.Sprintf("%s, opened %s", way.name, when)
			if busy {
				p.busy()
			}
			pairs = append(pairs, p)
		}
	}
	return pairs
}

// TestRunEndsConnections is the promise: with a reaper everything that is covered ends at its limit, at both ends.
func TestRunEndsConnections(t *testing.T) {
	for name, build := range topologies(t) {
		t.Run(name, func(t *testing.T) {
			top := build(t)
			top.listen(t)
			before := top.open(t, "before", 20000)
			var uncovered []*pair
			for range 2 {
				uncovered = append(uncovered, connect(t, top.client, top.uncovered, top.address4, netnstest.DialOptions{}),
					connect(t, top.client, top.uncovered, top.address6, netnstest.DialOptions{}).busy())
			}
			from := time.Now()
			reaper := start(t, top.curfew, "--port", "8081-8083", "--max-age", limit.String())
			// Nobody knows when these were born: their clock starts when the limit is installed.
			installed := span{from, time.Now()}
			for _, p := range before {
				p.born = installed
			}
			after := top.open(t, "after", 21000)

			sleepUntil(installed.to.Add(limit / 2))
			younger := top.open(t, "later", 22000)
			sleepUntil(installed.from.Add(limit - early))
			mustAllBeAlive(t, before, "before the limit")
			for _, p := range before {
				p.mustEnd(t, limit)
				p.mustBeReset(t)
			}
			sleepUntil(after[0].born.from.Add(limit - early))
			for _, p := range after {
				p.mustEnd(t, limit)
				p.mustBeReset(t)
			}
			mustAllBeAlive(t, younger, "although it is younger")
			again := reopen(t, top, after)
			for _, p := range younger {
				p.mustEnd(t, limit)
			}
			for _, p := range again {
				p.mustEnd(t, limit)
			}
			mustAllBeAlive(t, uncovered, "although its port is not covered")
			for _, p := range uncovered {
				p.mustTalk(t)
			}
			reaper.stop()
		})
	}
}

func mustAllBeAlive(t *testing.T, pairs []*pair, when string) {
	t.Helper()
	for _, p := range pairs {
		p.mustBeAlive(t, when)
	}
}

// reopen connects again from the same source ports, at once.
func reopen(t *testing.T, top *topology, ended []*pair) []*pair {
	t.Helper()
	var again []*pair
	for _, p := range ended {
		p.close()
		server := map[uint16]*netnstest.Server{8081: top.v4, 8082: top.v6, 8083: top.d}[p.client.RemoteAddr().Port()]
		n := connect(t, top.client, server, p.client.RemoteAddr().Addr(), netnstest.FromPort(p.client.LocalAddr().Port()))
		n.name = p.name + ", again from port " + strconv.Itoa(int(p.client.LocalAddr().Port()))
		again = append(again, n)
	}
	return again
}

// TestShortConnectionsSucceed opens many short connections while long ones are being ended.
func TestShortConnectionsSucceed(t *testing.T) {
	top := topologies(t)["both here"](t)
	top.listen(t)
	start(t, top.curfew, "--port", "8081-8083", "--max-age", "1s")
	top.open(t, "after", 20000)
	const count = 5000
	for i := range count {
		client, err := top.client.Connect("tcp4", netip.AddrPortFrom(top.address4, 8081).String(), netnstest.DialOptions{})
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		peer, err := top.v4.Peer(client, patience)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if _, err := client.Write([]byte("question")); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if err := peer.WaitEnd(patience); err != nil || peer.Received() != int64(len("question")) {
			t.Fatalf("connection %d: %v after %d bytes (%v)", i, err, peer.Received(), peer.Err())
		}
		peer.Close()
		client.Close()
	}
}

// TestReconnectAtOnce has many clients that connect again from the same port in the moment in which they are reset. Some
// are reset by the rule, before the reaper comes to them.
func TestReconnectAtOnce(t *testing.T) {
	t.Parallel()
	top := topologies(t)["server here"](t)
	top.listen(t)
	start(t, top.curfew, "--port", "8081-8083", "--max-age", "2s")
	var group sync.WaitGroup
	for i := range uint16(100) {
		p := connect(t, top.client, top.v4, top.address4, netnstest.FromPort(20000+i)).busy()
		group.Go(func() {
			<-p.client.Ended()
			p.client.Close()
			again, err := top.client.Connect("tcp4", p.client.RemoteAddr().String(), netnstest.FromPort(p.client.LocalAddr().Port()))
			if err != nil {
				t.Errorf("%s, %s after its end: %v", p.name, time.Since(p.client.EndedAt()), err)
				return
			}
			again.Close()
		})
	}
	group.Wait()
}
