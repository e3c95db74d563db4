package challenge

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

func TestForeignAddressIsRouted(t *testing.T) {
	h, peer := netnstest.NewHost(t, "host"), netnstest.NewHost(t, "peer")
	netnstest.Link(t, h, peer, 1)
	s := openSender(t, h, Mark)
	for flag, ends := range map[string][2]string{
		"-4": {"192.0.2.1:80", "10.1.0.2:5000"},
		"-6": {"[2001:db8::1]:80", "[fd00:1::2]:5000"},
	} {
		from, to := netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1])
		if err := s.Send(from, to, 0); err != nil {
			t.Error(err)
		}
		if err := h.Run(t.Context(), "ip", flag, "rule", "add", "from", from.Addr().String(), "prohibit"); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(from, to, 0); !errors.Is(err, syscall.EACCES) {
			t.Errorf("challenge as %s: %v, want the policy rule's EACCES", from, err)
		}
	}
}

// TestUntracked sends to an address of nobody's: a tracked packet makes a conntrack entry, and no RST removes it.
func TestUntracked(t *testing.T) {
	families(t, func(t *testing.T, f family) {
		p := newPair(t, f)
		from := p.far.LocalAddr()
		to := netip.AddrPortFrom(from.Addr().Next(), 9)
		entries := func() string {
			t.Helper()
			out, err := p.server.Output(t.Context(), "conntrack", "-L", "-f", f.conntrack, "-p", "tcp")
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		sendMarked := func(mark uint32) {
			t.Helper()
			if err := openSender(t, p.server, mark).Send(from, to, 0); err != nil {
				t.Fatal(err)
			}
		}
		if strings.Count(entries(), "\n") != 1 {
			t.Fatalf("want the connection's entry only:\n%s", entries())
		}
		sendMarked(Mark)
		if strings.Count(entries(), "\n") != 1 {
			t.Errorf("a challenge was tracked:\n%s", entries())
		}
		sendMarked(Mark + 1)
		if !strings.Contains(entries(), "dport=9 ") {
			t.Errorf("no entry for a packet with another mark, so this test proves nothing:\n%s", entries())
		}
	})
}

func TestLinkLocalNeedsZone(t *testing.T) {
	a, b := netnstest.NewHost(t, "a"), netnstest.NewHost(t, "b")
	wire := netnstest.Link(t, a, b, 1)
	if err := a.Run(t.Context(), "ip", "addr", "add", "fe80::a/64", "dev", wire.A.Dev, "nodad"); err != nil {
		t.Fatal(err)
	}
	s := openSender(t, a, Mark)
	from, to := netip.MustParseAddr("fe80::a"), netip.MustParseAddr("fe80::b")
	for zone, ok := range map[string]bool{wire.A.Dev: true, "": false, "none": false, "a-name-that-is-too-long": false} {
		err := s.Send(netip.AddrPortFrom(from, 1), netip.AddrPortFrom(to.WithZone(zone), 2), 0)
		if (err == nil) != ok {
			t.Errorf("zone %q: %v", zone, err)
		}
	}
}

func TestBadEnds(t *testing.T) {
	s := openSender(t, netnstest.NewHost(t, "host"), Mark)
	const v4, v6 = "127.0.0.1:1", "[::1]:1"
	tests := []struct {
		from, to string
		want     error
	}{
		{v4, v4, nil},
		{v6, v6, nil},
		{"[::ffff:127.0.0.1]:1", v4, nil},
		{v4, v6, ErrFamily},
		{v6, v4, ErrFamily},
		{"[::ffff:127.0.0.1]:1", v6, ErrFamily},
		{"", v4, ErrAddress},
		{v4, "", ErrAddress},
		{v4, "127.0.0.1:0", ErrAddress},
		{"0.0.0.0:1", v4, ErrAddress},
		{v6, "[::]:1", ErrAddress},
		{v4, "224.0.0.1:1", ErrAddress},
		{v6, "[ff02::1]:1", ErrAddress},
		{v4, "192.0.2.1:1", unix.ENETUNREACH},
	}
	for _, tt := range tests {
		from, _ := netip.ParseAddrPort(tt.from)
		to, _ := netip.ParseAddrPort(tt.to)
		if err := s.Send(from, to, 0); !errors.Is(err, tt.want) {
			t.Errorf("challenge %q as %q: %v, want %v", tt.to, tt.from, err, tt.want)
		}
	}
}

func TestDroppedOnOutput(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	nft(t, h, "table inet t { chain c { type filter hook output priority 0; meta mark 0x63003000 drop; }; }")
	a := netip.MustParseAddrPort("127.0.0.1:1")
	if err := openSender(t, h, Mark).Send(a, a, 0); !errors.Is(err, os.ErrPermission) {
		t.Errorf("dropped by a rule: %v, want EPERM", err)
	}
}

func TestClosed(t *testing.T) {
	s := openSender(t, netnstest.NewHost(t, "host"), Mark)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	a := netip.MustParseAddrPort("127.0.0.1:1")
	if err := s.Send(a, a, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("send after close: %v", err)
	}
}

func TestSendDoesNotAllocate(t *testing.T) {
	s := openSender(t, netnstest.NewHost(t, "host"), Mark)
	for _, a := range []string{"127.0.0.1:1", "[::1]:1"} {
		end := netip.MustParseAddrPort(a)
		got := testing.AllocsPerRun(100, func() {
			if err := s.Send(end, end, 1); err != nil {
				t.Error(err)
			}
		})
		if got != 0 {
			t.Errorf("%s: %v allocations, want none", a, got)
		}
	}
}

func BenchmarkSend(b *testing.B) {
	s := openSender(b, netnstest.NewHost(b, "host"), Mark)
	end := netip.MustParseAddrPort("127.0.0.1:1")
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Send(end, end, 0); err != nil {
			b.Fatal(err)
		}
	}
}
