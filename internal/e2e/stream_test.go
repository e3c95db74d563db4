package e2e

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// hello is what both ends send first, more than a packet.
const hello = 10_000

// A traffic is what a forwarded connection does until its limit.
type traffic struct {
	kind       string
	halfClosed bool // by the client
	byClient   bool // it sends all the time
	byServer   bool
}

var traffics = []traffic{
	{kind: "busy", byClient: true, byServer: true},
	{kind: "client sends", byClient: true},
	{kind: "server sends", byServer: true},
	{kind: "idle"},
	{kind: "half-closed", halfClosed: true},
	{kind: "half-closed, server sends", halfClosed: true, byServer: true},
}

// A stream is a connection whose data is checked.
type stream struct {
	*pair
	traffic
	local              bool  // an end is a socket of curfew's host
	toServer, toClient int64 // what had been sent at the last look
}

// newStream begins to send.
func newStream(t *testing.T, p *pair, k traffic) *stream {
	t.Helper()
	p.name += ", " + k.kind
	s := &stream{pair: p, traffic: k}
	if k.halfClosed {
		p.server.AllowHalfClose()
	}
	for _, end := range p.ends() {
		if err := end.Send(hello); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
	}
	if k.halfClosed {
		if err := p.client.CloseWrite(); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
	}
	if k.byClient {
		p.client.Stream(pace, hello)
	}
	if k.byServer {
		p.server.Stream(pace, hello)
	}
	return s
}

// look notes what has been sent so far, all of which must arrive. It is in vain when it is almost too late for that.
func (s *stream) look(limit time.Duration) {
	toServer, toClient := s.client.Sent(), s.server.Sent()
	if time.Since(s.born.from) < limit-early {
		s.toServer, s.toClient = toServer, toClient
	}
}

// mustBeWhole checks what has arrived.
func (s *stream) mustBeWhole(t *testing.T) {
	t.Helper()
	for name, end := range s.ends() {
		if err := end.Damage(); err != nil {
			t.Errorf("%s, %s: %v", s.name, name, err)
		}
	}
	if got := s.server.Received(); got < s.toServer || s.toServer < hello {
		t.Errorf("%s: the server got %d bytes of %d", s.name, got, s.toServer)
	}
	if got := s.client.Received(); got < s.toClient || s.toClient < hello {
		t.Errorf("%s: the client got %d bytes of %d", s.name, got, s.toClient)
	}
}

// mustBeReset checks the errors that the programs saw. After the client's FIN Linux reports a reset as EPIPE.
func (s *stream) mustBeReset(t *testing.T) {
	t.Helper()
	for name, end := range s.ends() {
		s.mustBeResetAt(t, name, end)
	}
}

func (s *stream) mustBeResetAt(t *testing.T, name string, end *netnstest.Conn) {
	t.Helper()
	if end == s.server && s.halfClosed && errors.Is(end.Err(), syscall.EPIPE) {
		return
	}
	if s.local && errors.Is(end.Err(), syscall.ECONNABORTED) {
		return
	}
	if err := end.Err(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s, %s: saw %v, want a reset", s.name, name, err)
	}
}

// mustAllEndWhole waits for the limit of groups of streams, those that were opened first at the front, and checks everything.
func mustAllEndWhole(t *testing.T, limit time.Duration, groups ...[]*stream) {
	t.Helper()
	for _, age := range []time.Duration{limit / 2, limit - 2*early} {
		for _, streams := range groups {
			sleepUntil(streams[0].born.from.Add(age))
			for _, s := range streams {
				s.look(limit)
			}
		}
	}
	for _, streams := range groups {
		for _, s := range streams {
			s.mustEnd(t, limit)
			s.mustBeReset(t)
			s.mustBeWhole(t)
		}
	}
}

// latest is how late the last end of all was.
func latest(streams []*stream, limit time.Duration) (most time.Duration) {
	for _, s := range streams {
		for _, end := range s.ends() {
			if !end.Alive() {
				most = max(most, end.EndedAt().Sub(s.born.to)-limit)
			}
		}
	}
	return most
}

// mustGoOn checks streams that no limit covers: both ends are open, and everything that was sent arrives.
func mustGoOn(t *testing.T, streams []*stream) {
	t.Helper()
	for _, s := range streams {
		s.toServer, s.toClient = s.client.Sent(), s.server.Sent()
		s.mustBeAlive(t, "although no limit covers it")
		eventually(t, s.name+": all that was sent", func() bool {
			return s.server.Received() >= s.toServer && s.client.Received() >= s.toClient
		})
		s.mustBeWhole(t)
	}
}
