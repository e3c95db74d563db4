package challenge

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

func TestIdleConnectionCloses(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t, f)
		s := openSender(t, p.server, Mark)
		nft(t, p.server, "add element inet test armed { tcp }")

		sent := time.Now()
		send(t, s, p.far, 0)
		wantReset(t, p.near, sent)
		if !p.far.Alive() {
			t.Error("the server's end closed too, though only the challenged end should")
		}
	})
}

// TestGatewayClosesBothEnds sends from a host that has neither address.
func TestGatewayClosesBothEnds(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := netnstest.NewPath(t)
		srv := p.Server.Listen(t, f.network, f.listen())
		nft(t, p.Gateway, gatewayRules)
		near := p.Client.Dial(t, f.network, f.dial(p.Server), netnstest.DialOptions{})
		far := srv.Conn(t, near)
		s := openSender(t, p.Gateway, Mark)
		nft(t, p.Gateway, "add element inet test armed { tcp }")

		sent := time.Now()
		send(t, s, near, 0)
		send(t, s, far, 0)
		wantReset(t, near, sent)
		wantReset(t, far, sent)
	})
}

const gatewayRules = `table inet test {
	set armed { type inet_proto; }
	chain probe { type filter hook output priority raw; meta mark 0x63003000 notrack; }
	chain forward {
		type filter hook forward priority filter;
		tcp flags & rst == rst return
		ct state established meta l4proto @armed reject with tcp reset
	}
}`

func wantReset(t *testing.T, c *netnstest.Conn, sent time.Time) {
	t.Helper()
	if err := c.WaitEnd(patience); err != nil {
		t.Error(err)
		return
	}
	if !errors.Is(c.Err(), syscall.ECONNRESET) {
		t.Errorf("%s ended with %v, want a reset", c, c.Err())
	}
	took := c.EndedAt().Sub(sent)
	t.Logf("%s closed %v after the challenge", c, took)
	if took > Interval/2 {
		t.Errorf("%s closed %v after the challenge", c, took)
	}
}

func TestHarmlessWithoutReject(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t, f)
		unlimited(t, p.client)
		unlimited(t, p.server)
		s := openSender(t, p.server, Mark)
		before := p.answers(t)
		for i := range 10 {
			send(t, s, p.near, i)
			send(t, s, p.far, i)
		}
		eventually(t, "10 answers", func() bool { return p.answers(t) >= before+10 })

		wantFlow(t, p.near, p.far)
		wantFlow(t, p.far, p.near)
	})
}

func unlimited(t *testing.T, h *netnstest.Host) {
	t.Helper()
	if err := h.SetSysctl("net.ipv4.tcp_invalid_ratelimit", "0"); err != nil {
		t.Fatal(err)
	}
}

func wantFlow(t *testing.T, from, to *netnstest.Conn) {
	t.Helper()
	data := make([]byte, 100_000)
	if _, err := from.Write(data); err != nil {
		t.Fatal(err)
	}
	eventually(t, "data arrives", func() bool { return to.Received() == int64(len(data)) })
}
