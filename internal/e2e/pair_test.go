package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// A pair is a connection with both its ends.
type pair struct {
	name           string
	client, server *netnstest.Conn
	born           span
}

// A span is when something happened, as exactly as a test can know it.
type span struct{ from, to time.Time }

// at is the span of a moment.
func at(t time.Time) span { return span{t, t} }

// connect opens a connection from the host to the server.
func connect(t *testing.T, h *netnstest.Host, s *netnstest.Server, address netip.Addr, opts netnstest.DialOptions) *pair {
	t.Helper()
	from := time.Now()
	client := h.Dial(t, "tcp", netip.AddrPortFrom(address, s.Port()).String(), opts)
	return &pair{fmt.Sprint(client), client, s.Conn(t, client), span{from, time.Now()}}
}

// busy makes both ends write.
func (p *pair) busy() *pair {
	p.client.Busy(pace)
	p.server.Busy(pace)
	p.name += " (busy)"
	return p
}

func (p *pair) ends() map[string]*netnstest.Conn {
	return map[string]*netnstest.Conn{"client": p.client, "server": p.server}
}

func (p *pair) close() {
	p.client.Close()
	p.server.Close()
}

// mustBeAlive fails when an end has closed.
func (p *pair) mustBeAlive(t *testing.T, when string) {
	t.Helper()
	for name, end := range p.ends() {
		if !end.Alive() {
			t.Errorf("%s, %s: closed %.3f s after birth (%v), %s", p.name, name, end.EndedAt().Sub(p.born.to).Seconds(), end.Err(), when)
		}
	}
}

// mustTalk fails when a byte does not get through in both directions.
func (p *pair) mustTalk(t *testing.T) {
	t.Helper()
	for _, way := range [][2]*netnstest.Conn{{p.client, p.server}, {p.server, p.client}} {
		before := way[1].Received()
		if _, err := way[0].Write([]byte("x")); err != nil {
			t.Errorf("%s: write: %v", p.name, err)
			return
		}
		eventually(t, p.name+": a byte to arrive", func() bool { return way[1].Received() > before })
	}
}

// mustEnd waits for both ends and checks when they closed: at limit, never early.
func (p *pair) mustEnd(t *testing.T, limit time.Duration) {
	t.Helper()
	for name, end := range p.ends() {
		p.mustEndAt(t, name, end, limit)
	}
}

func (p *pair) mustEndAt(t *testing.T, name string, end *netnstest.Conn, limit time.Duration) {
	t.Helper()
	if err := end.WaitEnd(time.Until(p.born.to.Add(limit)) + patience); err != nil {
		t.Errorf("%s, %s: still open %.3f s after birth", p.name, name, time.Since(p.born.to).Seconds())
		return
	}
	if age := end.EndedAt().Sub(p.born.from); age < limit {
		t.Errorf("%s, %s: ended early, after %.3f s (%v)", p.name, name, age.Seconds(), end.Err())
	}
	if age := end.EndedAt().Sub(p.born.to); age > limit+late {
		t.Errorf("%s, %s: ended late, after %.3f s (%v)", p.name, name, age.Seconds(), end.Err())
	}
}

// mustBeReset checks the errors that the programs at both ends saw.
func (p *pair) mustBeReset(t *testing.T) {
	t.Helper()
	for name, end := range p.ends() {
		if err := end.Err(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("%s, %s: saw %v, want a reset", p.name, name, err)
		}
	}
}

// sleepUntil waits for a point in time of the test's story.
func sleepUntil(t time.Time) { time.Sleep(time.Until(t)) }
