package e2e

import (
	"net/netip"
	"testing"
	"time"

	"curfew/internal/netnstest"
	"curfew/reaper/challenge"
)

// How many challenges an end may get: one that answers, and one that does not.
const (
	maxChallenges     = 3
	maxChallengesDeaf = challenge.Attempts
)

// A place is an end of a connection, seen from the gateway: the device that it is reached through and both addresses.
type place struct {
	dev         string
	local, peer netip.AddrPort
}

// places are the ends of all streams.
func (g *gateway) places(streams []*stream) map[place]*stream {
	m := map[place]*stream{}
	for _, s := range streams {
		m[place{g.Near.B.Dev, s.client.LocalAddr(), s.client.RemoteAddr()}] = s
		m[place{g.Far.A.Dev, s.server.LocalAddr(), s.server.RemoteAddr()}] = s
	}
	return m
}

// placeOf is the end that sends the packet or is to get it.
func placeOf(p *netnstest.Packet) place {
	if p.Outgoing {
		return place{p.Dev, p.Dst, p.Src}
	}
	return place{p.Dev, p.Src, p.Dst}
}

// originTTL is what packets have that the gateway makes itself; those that it forwards have less.
const originTTL = 64

// byGateway tells that the gateway has made the packet.
func byGateway(p *netnstest.Packet) bool { return p.Outgoing && p.TTL == originTTL }

// TestGatewayOnTheWire looks at every packet: the addresses on each link must be those which that side knows, and of
// our own packets there are only resets and a few challenges, none before the limit. Some ends don't hear us.
func TestGatewayOnTheWire(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	start(t, g.Gateway, gatewayFlags...)
	record := g.Gateway.Record(t)
	hearing := open(t, g.routes, "both hear", traffics...)
	deafClients := open(t, g.routes, "deaf client", traffics[3])
	deafServers := open(t, g.routes, "deaf server", traffics[3])
	all := append(append(deafClients, deafServers...), hearing...)
	for i := range deafClients {
		deafen(t, g.Client, deafClients[i].client)
		deafen(t, g.Server, deafServers[i].server)
	}
	for _, s := range hearing {
		s.mustEnd(t, limit)
	}
	for _, s := range deafClients {
		s.mustEndAt(t, "server", s.server, limit)
	}
	for _, s := range deafServers {
		s.mustEndAt(t, "client", s.client, limit)
	}
	sleepUntil(deafServers[len(deafServers)-1].born.to.Add(limit + allAttempts))

	packets, err := record.Stop()
	if err != nil {
		t.Fatal(err)
	}
	challenges := g.count(t, packets, all)
	for _, s := range hearing {
		g.mustBeChallenged(t, s, "client", challenges, s.least(), maxChallenges)
		g.mustBeChallenged(t, s, "server", challenges, s.least(), maxChallenges)
	}
	for i := range deafClients {
		g.mustBeChallenged(t, deafClients[i], "client", challenges, 2, maxChallengesDeaf)
		g.mustBeChallenged(t, deafClients[i], "server", challenges, 1, maxChallenges)
		g.mustBeChallenged(t, deafServers[i], "client", challenges, 1, maxChallenges)
		g.mustBeChallenged(t, deafServers[i], "server", challenges, 2, maxChallengesDeaf)
	}
	t.Logf("%d packets, %d of %d ends were challenged", len(packets), len(challenges), 2*len(all))
}

// allAttempts is the time in which all challenges are sent.
const allAttempts = 3 * time.Second

// count checks every packet and answers how many challenges each end got.
func (g *gateway) count(t *testing.T, packets []netnstest.Packet, all []*stream) map[place]int {
	t.Helper()
	places, challenges := g.places(all), map[place]int{}
	for i := range packets {
		p := &packets[i]
		s := places[placeOf(p)]
		switch {
		case s == nil:
			t.Errorf("addresses that this side does not know: %s", p)
		case !byGateway(p):
		case p.At.Before(s.born.from.Add(limit)):
			t.Errorf("%s: before the limit the gateway sends %s", s.name, p)
		case p.Flags&netnstest.FlagRST == 0 && (p.Flags != netnstest.FlagACK || p.Length > 0):
			t.Errorf("%s: neither a reset nor a bare ACK: %s", s.name, p)
		case p.Flags&netnstest.FlagRST == 0:
			challenges[placeOf(p)]++
		}
	}
	return challenges
}

// least is how many challenges each end needs: who sends is reset by the rule anyway.
func (s *stream) least() int {
	if s.byClient || s.byServer {
		return 0
	}
	return 1
}

func (g *gateway) mustBeChallenged(t *testing.T, s *stream, end string, challenges map[place]int, least, most int) {
	t.Helper()
	at := place{g.Near.B.Dev, s.client.LocalAddr(), s.client.RemoteAddr()}
	if end == "server" {
		at = place{g.Far.A.Dev, s.server.LocalAddr(), s.server.RemoteAddr()}
	}
	if n := challenges[at]; n < least || n > most {
		t.Errorf("%s, %s: got %d challenges, want %d to %d", s.name, end, n, least, most)
	}
}
