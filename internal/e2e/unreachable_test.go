package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"curfew/internal/netnstest"
)

// deafen drops what arrives at the ends of some connections on a host.
func deafen(t *testing.T, h *netnstest.Host, conns ...*netnstest.Conn) {
	t.Helper()
	var rules strings.Builder
	rules.WriteString("add table inet deaf\nadd chain inet deaf input { type filter hook input priority 0; }\n")
	for _, c := range conns {
		ip, from := "ip", c.RemoteAddr()
		if from.Addr().Is6() {
			ip = "ip6"
		}
		fmt.Fprintf(&rules, "add rule inet deaf input %s saddr %s tcp sport %d tcp dport %d drop\n",
			ip, from.Addr(), from.Port(), c.LocalAddr().Port())
	}
	tool(t, h, rules.String(), "nft", "-f", "-")
}

// silentTraffics are those without a packet until the limit.
var silentTraffics = []traffic{{kind: "idle"}, {kind: "half-closed", halfClosed: true}}

// A lonely gateway has one end that can't be reached.
type lonely struct {
	*gateway
	name    string
	log     *process
	host    *netnstest.Host // that can't be reached
	dev     string
	streams []*stream
}

// here is the stream's end that can be reached, and gone the other one.
func (l *lonely) here(s *stream) *netnstest.Conn {
	if l.host == l.Client {
		return s.server
	}
	return s.client
}

func (l *lonely) gone(s *stream) *netnstest.Conn {
	if l.host == l.Client {
		return s.client
	}
	return s.server
}

func newLonely(t *testing.T, client bool) *lonely {
	t.Helper()
	g := newGateway(t)
	l := &lonely{gateway: g, name: "server", host: g.Server, dev: g.Far.B.Dev}
	if client {
		l.name, l.host, l.dev = "client", g.Client, g.Near.A.Dev
	}
	l.log = start(t, g.Gateway, gatewayFlags...)
	l.streams = open(t, g.routes, l.name+" unreachable", silentTraffics...)
	return l
}

// TestGatewayUnreachableEnd pulls the link of one end. The other ends in time. When the link is back, a late packet is
// answered with a reset.
func TestGatewayUnreachableEnd(t *testing.T) {
	t.Parallel()
	both := []*lonely{newLonely(t, true), newLonely(t, false)}
	for _, l := range both {
		if err := l.host.LinkDown(l.dev); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range both {
		for _, s := range l.streams {
			s.mustEndAt(t, "the other end", l.here(s), limit)
			s.mustBeResetAt(t, "the other end", l.here(s))
			s.mustBeWhole(t, s.born.from.Add(limit-settled))
		}
	}
	sleepUntil(both[1].streams[0].born.to.Add(limit + allAttempts))
	for _, l := range both {
		l.mustReport(t)
		if err := l.host.LinkUp(l.dev); err != nil {
			t.Fatal(err)
		}
		l.awaitGateway(t)
		l.mustAnswer(t)
	}
}

// awaitGateway waits until the way to the gateway works again: an error of routing would end a connection, too.
func (l *lonely) awaitGateway(t *testing.T) {
	t.Helper()
	gateway := l.Near.B
	if l.host == l.Server {
		gateway = l.Far.A
	}
	for _, a := range []netip.Addr{gateway.Addr4, gateway.Addr6} {
		eventually(t, "the gateway", func() bool {
			return l.host.Run(t.Context(), "ping", "-c", "1", "-W", "1", a.String()) == nil
		})
	}
}

// mustReport looks for the survivors in the log, by the client's address.
func (l *lonely) mustReport(t *testing.T) {
	t.Helper()
	for _, s := range l.streams {
		if !l.gone(s).Alive() {
			t.Errorf("%s: the end without a link has closed: %v", s.name, l.gone(s).Err())
		}
		if !l.log.reported("survived", s.client.LocalAddr().String()) {
			t.Errorf("%s: not reported as a survivor", s.name)
		}
	}
}

// reported looks for a line of the log that has all words.
func (p *process) reported(words ...string) bool {
	for line := range strings.Lines(p.log.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}

// mustAnswer sends a late packet from each end that was cut off.
func (l *lonely) mustAnswer(t *testing.T) {
	t.Helper()
	for _, s := range l.streams {
		end := l.gone(s)
		if s.halfClosed && end == s.client {
			continue // it can't send any more
		}
		_ = end.Send(1) // a challenge that has waited for the neighbour may have come first
		if err := end.WaitEnd(patience); err != nil {
			t.Errorf("%s: the %s is back, and its late packet is not answered: %v", s.name, l.name, err)
			continue
		}
		s.mustBeResetAt(t, l.name, end)
	}
}
