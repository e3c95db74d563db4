package challenge

import (
	"fmt"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

func TestOneAnswerPerInterval(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t, f)
		s := openSender(t, p.server, Mark)
		before := p.answers(t)
		send(t, s, p.far, 0)
		send(t, s, p.far, 1)
		eventually(t, "an answer is skipped", func() bool { return kernelCounter(t, p.client, "netstat", "TCPACKSkippedSeq") == 1 })
		if got := p.answers(t) - before; got != 1 {
			t.Errorf("%d answers to two challenges at once, want 1", got)
		}
		time.Sleep(Interval)
		send(t, s, p.far, 2)
		eventually(t, "a second answer", func() bool { return p.answers(t)-before == 2 })
	})
}

// TestTimestamps goes around the number space with an end that has negotiated timestamps and with one that has not.
func TestTimestamps(t *testing.T) {
	for _, sysctl := range []string{"0", "1"} {
		t.Run("tcp_timestamps="+sysctl, func(t *testing.T) {
			p := newBarePair(t)
			if err := p.client.SetSysctl("net.ipv4.tcp_timestamps", sysctl); err != nil {
				t.Fatal(err)
			}
			s := p.open(t)
			for _, s.base = range around() {
				before := p.sent(t)
				send(t, s, p.far, 0)
				eventually(t, fmt.Sprintf("an answer to %+v", s.base), func() bool { return p.sent(t) > before })
			}
		})
	}
}

// TestFirewalledEndAnswersOneAttempt is about an end that drops what its connection tracking calls invalid.
func TestFirewalledEndAnswersOneAttempt(t *testing.T) {
	p := newBarePair(t)
	nft(t, p.client, `table inet firewall {
		chain input { type filter hook input priority filter; ct state invalid counter drop; }
	}`)
	s := p.open(t)
	for _, s.base = range around() {
		before := p.sent(t)
		for i := range Attempts {
			send(t, s, p.far, i)
		}
		eventually(t, fmt.Sprintf("an answer to one attempt from %+v", s.base), func() bool { return p.sent(t) > before })
	}
}

// around is a grid over the number space.
func around() []numbers {
	const n = 4
	var all []numbers
	for i := range uint32(n * n) {
		all = append(all, numbers{seq: i % n * (1 << 32 / n), ack: i / n * (1 << 32 / n)})
	}
	return all
}

// newBarePair makes a client without rate limit and a server, not connected yet.
func newBarePair(t *testing.T) *pair {
	t.Helper()
	p := &pair{client: netnstest.NewHost(t, "client"), server: netnstest.NewHost(t, "server")}
	netnstest.Link(t, p.client, p.server, 1)
	unlimited(t, p.client)
	return p
}

// open connects the pair, and returns a sender on the server.
func (p *pair) open(t *testing.T) *Sender {
	t.Helper()
	p.connect(t, overIPv4)
	wantFlow(t, p.near, p.far)
	wantFlow(t, p.far, p.near)
	return openSender(t, p.server, Mark)
}

// sent is how many segments the client has sent.
func (p *pair) sent(t *testing.T) int {
	t.Helper()
	return kernelCounter(t, p.client, "snmp", "OutSegs")
}
