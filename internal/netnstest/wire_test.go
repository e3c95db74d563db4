package netnstest

import (
	"net/netip"
	"testing"
)

func TestWire(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	if a.Addr4() != netip.MustParseAddr("127.0.0.1") || a.Addr6() != netip.MustParseAddr("::1") {
		t.Fatalf("host without a wire: %s %s", a.Addr4(), a.Addr6())
	}
	w := Link(t, a, b, 9)
	want := End{Dev: "link9", Addr4: netip.MustParseAddr("10.9.0.2"), Addr6: netip.MustParseAddr("fd00:9::2")}
	if w.B != want || b.Addr4() != want.Addr4 || b.Addr6() != want.Addr6 {
		t.Fatalf("b's end is %+v, want %+v", w.B, want)
	}
	exchange(t, a, b)
}

func TestPath(t *testing.T) {
	p := NewPath(t)
	exchange(t, p.Client, p.Server)
	exchange(t, p.Server, p.Client)
}

// exchange sends a byte each way, over IPv4 and IPv6.
func exchange(t *testing.T, from, to *Host) {
	t.Helper()
	for network, addr := range map[string]netip.Addr{"tcp4": to.Addr4(), "tcp6": to.Addr6()} {
		s := to.Listen(t, network, netip.AddrPortFrom(addr, 0).String())
		c := from.Dial(t, network, s.Addr().String(), DialOptions{})
		peer := s.Conn(t, c)
		if c.LocalAddr() != peer.RemoteAddr() || c.RemoteAddr() != peer.LocalAddr() {
			t.Errorf("ends disagree: %s and %s", c, peer)
		}
		for _, end := range []*Conn{c, peer} {
			if _, err := end.Write([]byte("x")); err != nil {
				t.Error(err)
			}
		}
		waitFor(t, func() bool { return c.Received() == 1 && peer.Received() == 1 })
	}
}
