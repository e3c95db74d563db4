package netnstest

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDamage(t *testing.T) {
	c, s := pair(t)
	if err := c.Send(100_000); err != nil {
		t.Fatal(err)
	}
	c.Stream(time.Millisecond, 10)
	waitFor(t, func() bool { return s.Received() > 100_100 })
	if err := s.Damage(); err != nil {
		t.Fatal(err)
	}
	if c.Sent() < s.Received() {
		t.Errorf("sent %d bytes, received %d", c.Sent(), s.Received())
	}
	if _, err := s.Write([]byte{patternByte(0), patternByte(2)}); err != nil { // one is missing
		t.Fatal(err)
	}
	waitFor(t, func() bool { return c.Received() == 2 })
	if err := c.Damage(); err == nil || !strings.Contains(err.Error(), "byte 1 of 2") {
		t.Errorf("a missing byte: %v", err)
	}
}

func TestHalfClosedEndThatWritesSeesTheReset(t *testing.T) {
	for range 20 {
		c, s := pair(t)
		s.AllowHalfClose()
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		s.Busy(time.Millisecond)
		waitFor(t, func() bool { return c.Received() > 2 })
		if err := c.Reset(); err != nil {
			t.Fatal(err)
		}
		ends(t, s, unix.EPIPE)
	}
}

func TestLinkDown(t *testing.T) {
	p := NewPath(t)
	dev := p.Near.A.Dev
	for network, addr := range map[string]netip.Addr{"tcp4": p.Server.Addr4(), "tcp6": p.Server.Addr6()} {
		s := p.Server.Listen(t, network, netip.AddrPortFrom(addr, 0).String())
		c := p.Client.Dial(t, network, s.Addr().String(), DialOptions{})
		peer := s.Conn(t, c)
		if err := p.Client.LinkDown(dev); err != nil {
			t.Fatal(err)
		}
		if err := peer.Send(1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		if c.Received() > 0 {
			t.Fatal("a byte has passed a link that is down")
		}
		if err := p.Client.LinkUp(dev); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return c.Received() == 1 })
	}
	exchange(t, p.Client, p.Server)
}

func TestBridge(t *testing.T) {
	h, a, b := NewHost(t, "h"), NewHost(t, "a"), NewHost(t, "b")
	br := NewBridge(t, h, 7)
	if end := br.Join(t, a); end.Addr4 != netip.MustParseAddr("10.7.0.2") || a.Addr4() != end.Addr4 {
		t.Fatalf("the first end is %+v", end)
	}
	br.Join(t, b)
	exchange(t, a, b)
	exchange(t, h, b)
	exchange(t, b, h)
}

func TestMoreAddresses(t *testing.T) {
	p := NewPath(t)
	for _, prefix := range []string{"10.1.0.9/24", "fd00:1::9/64"} {
		prefix := netip.MustParsePrefix(prefix)
		if err := p.Client.AddAddr(p.Near.A.Dev, prefix); err != nil {
			t.Fatal(err)
		}
		s := p.Server.Listen(t, "tcp", "[::]:0")
		to := p.Server.Addr4()
		if prefix.Addr().Is6() {
			to = p.Server.Addr6()
		}
		c := p.Client.Dial(t, "tcp", netip.AddrPortFrom(to, s.Port()).String(), DialOptions{From: netip.AddrPortFrom(prefix.Addr(), 0)})
		if peer := s.Conn(t, c); peer.RemoteAddr().Addr() != prefix.Addr() {
			t.Errorf("the server sees %s, want %s", peer.RemoteAddr(), prefix.Addr())
		}
	}
}

func TestCapture(t *testing.T) {
	p := NewPath(t)
	dump := p.Gateway.Record(t)
	for network, addr := range map[string]netip.Addr{"tcp4": p.Server.Addr4(), "tcp6": p.Server.Addr6()} {
		s := p.Server.Listen(t, network, netip.AddrPortFrom(addr, 0).String())
		c := p.Client.Dial(t, network, s.Addr().String(), DialOptions{})
		peer := s.Conn(t, c)
		if err := c.Send(77); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return peer.Received() == 77 })
		if err := c.Reset(); err != nil {
			t.Fatal(err)
		}
		ends(t, peer, unix.ECONNRESET)
	}
	packets, err := dump.Stop()
	if err != nil {
		t.Fatal(err)
	}
	type kind struct {
		v4, out bool
		dev     string
		flags   uint8
		length  int
		ttl     uint8
	}
	count := map[kind]int{}
	for _, q := range packets {
		count[kind{q.Dst.Addr().Is4(), q.Outgoing, q.Dev, q.Flags &^ FlagPSH, q.Length, q.TTL}]++
		if q.Src.Addr() == p.Client.Addr4() && q.Dst.Addr() != p.Server.Addr4() {
			t.Errorf("wrong address: %s", q)
		}
	}
	for _, v4 := range []bool{true, false} {
		for _, want := range []kind{
			{v4, false, "link1", FlagSYN, 0, 64},
			{v4, true, "link2", FlagSYN, 0, 63},
			{v4, false, "link1", FlagACK, 77, 64},
			{v4, true, "link2", FlagACK, 77, 63},
			{v4, false, "link2", FlagSYN | FlagACK, 0, 64},
			{v4, true, "link2", FlagRST | FlagACK, 0, 63},
		} {
			if count[want] != 1 {
				t.Errorf("%d packets %+v, want 1", count[want], want)
			}
		}
	}
	if t.Failed() {
		for _, q := range packets {
			t.Log(q)
		}
	}
}
