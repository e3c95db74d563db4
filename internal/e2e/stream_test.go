package e2e

import (
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

const (
	// hello is what both ends send first.
	hello = 10_000
	// chunk is what a busy end sends at a time, more than a packet.
	chunk = 2000
	// settled is how long before the limit data must be sent to be certain to arrive: no less than a retransmission.
	settled = 4 * early
)

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
	local bool // an end is a socket of curfew's host

	mu   sync.Mutex
	sent []sent
}

// sent is how much both ends had sent at some time.
type sent struct {
	at                 time.Time
	toServer, toClient int64
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
		p.client.Stream(pace, chunk)
	}
	if k.byServer {
		p.server.Stream(pace, chunk)
	}
	go s.watch()
	return s
}

// watch notes how much is sent, as long as both ends live.
func (s *stream) watch() {
	tick := time.NewTicker(early)
	defer tick.Stop()
	for s.client.Alive() && s.server.Alive() {
		s.note()
		<-tick.C
	}
}

func (s *stream) note() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, sent{time.Now(), s.client.Sent(), s.server.Sent()})
}

// sentBy is the last note before a moment.
func (s *stream) sentBy(moment time.Time) (last sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.sent {
		if n.at.Before(moment) {
			last = n
		}
	}
	return last
}

// mustBeWhole checks that what has arrived is what was sent, and all of it that was sent until a moment.
func (s *stream) mustBeWhole(t *testing.T, until time.Time) {
	t.Helper()
	for name, end := range s.ends() {
		if err := end.Damage(); err != nil {
			t.Errorf("%s, %s: %v", s.name, name, err)
		}
	}
	want := s.sentBy(until)
	if got := s.server.Received(); got < want.toServer || want.toServer < hello {
		t.Errorf("%s: the server got %d bytes of %d", s.name, got, want.toServer)
	}
	if got := s.client.Received(); got < want.toClient || want.toClient < hello {
		t.Errorf("%s: the client got %d bytes of %d", s.name, got, want.toClient)
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

// mustAllEndWhole waits for the limit of groups of streams and checks everything.
func mustAllEndWhole(t *testing.T, limit time.Duration, groups ...[]*stream) {
	t.Helper()
	for _, streams := range groups {
		for _, s := range streams {
			s.mustEnd(t, limit)
			s.mustBeReset(t)
			s.mustBeWhole(t, s.born.from.Add(limit-settled))
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
		s.mustBeAlive(t, "although no limit covers it")
		s.note()
		want := s.sentBy(time.Now())
		eventually(t, s.name+": all that was sent", func() bool {
			return s.server.Received() >= want.toServer && s.client.Received() >= want.toClient
		})
		s.mustBeWhole(t, want.at.Add(1))
	}
}
