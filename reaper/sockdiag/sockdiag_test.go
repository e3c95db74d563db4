package sockdiag

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// patience is how long a test waits for what should happen at once.
const patience = 5 * time.Second

// families are the ways in which a server listens and a client comes to it, over the loopback device.
var families = []struct{ name, network, listen, dial string }{
	{"IPv4", "tcp4", "127.0.0.1:0", "127.0.0.1"},
	{"IPv6", "tcp6", "[::1]:0", "::1"},
	{"v4-mapped", "tcp", "[::]:0", "127.0.0.1"},
}

// pair is one connection on one host; server is the accepted end.
type pair struct {
	listener       *netnstest.Server
	client, server *netnstest.Conn
}

func connect(t *testing.T, h *netnstest.Host, network, listen, dial string) pair {
	t.Helper()
	s := h.Listen(t, network, listen)
	return connectTo(t, h, s, dial)
}

func connectTo(t *testing.T, h *netnstest.Host, s *netnstest.Server, dial string) pair {
	t.Helper()
	c := h.Dial(t, "tcp", netip.AddrPortFrom(netip.MustParseAddr(dial), s.Port()).String(), netnstest.DialOptions{})
	return pair{s, c, s.Conn(t, c)}
}

func open(t *testing.T, h *netnstest.Host) *Conn {
	t.Helper()
	var c *Conn
	if err := h.Do(func() (err error) { c, err = Open(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func lookup(t *testing.T, c *Conn, end *netnstest.Conn) Socket {
	t.Helper()
	s, err := c.Lookup(end.LocalAddr(), end.RemoteAddr())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantEnd(t *testing.T, c *netnstest.Conn, want error) {
	t.Helper()
	if err := c.WaitEnd(patience); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(c.Err(), want) {
		t.Fatalf("%v ended with %v, want %v", c, c.Err(), want)
	}
}

// wantAccepting makes sure that the listener has survived.
func wantAccepting(t *testing.T, h *netnstest.Host, s *netnstest.Server, dial string) {
	t.Helper()
	if p := connectTo(t, h, s, dial); !p.server.Alive() || s.Err() != nil {
		t.Fatalf("listener %v has ended: %v", s.Addr(), s.Err())
	}
}

func TestLookupFindsBothEnds(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			h := netnstest.NewHost(t, "a")
			c, p := open(t, h), connect(t, h, f.network, f.listen, f.dial)
			for _, end := range []*netnstest.Conn{p.client, p.server} {
				s := lookup(t, c, end)
				if s.Local != end.LocalAddr() || s.Remote != end.RemoteAddr() {
					t.Errorf("got %v, want %v", &s, end)
				}
				if s.State != Established || s.Cookie == 0 || s.Inode == 0 || !s.HasInfo {
					t.Errorf("got %+v", s)
				}
			}
		})
	}
}

func TestLookupTellsHowLongIdle(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c, p := open(t, h), connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	time.Sleep(100 * time.Millisecond)
	if _, err := p.client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	s := lookup(t, c, p.client)
	if s.LastSent > 90*time.Millisecond || s.LastRecv < 90*time.Millisecond || s.LastRecv > patience {
		t.Fatalf("sent %v ago, received %v ago; want about 0 and 100 ms", s.LastSent, s.LastRecv)
	}
}

func TestDestroyEndsBothEnds(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			h := netnstest.NewHost(t, "a")
			c, p := open(t, h), connect(t, h, f.network, f.listen, f.dial)
			s := lookup(t, c, p.server)
			if err := c.Destroy(&s); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, p.server, unix.ECONNABORTED)
			wantEnd(t, p.client, unix.ECONNRESET)
			if err := c.Destroy(&s); !errors.Is(err, ErrNotFound) {
				t.Fatalf("second destroy: %v", err)
			}
			wantAccepting(t, h, p.listener, f.dial)
		})
	}
}

func TestDestroyWhatWasListed(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			h := netnstest.NewHost(t, "a")
			c, p := open(t, h), connect(t, h, f.network, f.listen, f.dial)
			found := list(t, c, Query{LocalPorts: []PortRange{{p.listener.Port(), p.listener.Port()}}})
			if len(found) != 1 || found[0].Remote != p.server.RemoteAddr() {
				t.Fatalf("listed %v, want the server's end of %v", found, p.server)
			}
			if err := c.Destroy(&found[0]); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, p.server, unix.ECONNABORTED)
			wantEnd(t, p.client, unix.ECONNRESET)
		})
	}
}

// The kernel answers a look-up of a gone connection with the listener on its local port.
func TestListenerIsNeverFound(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			h := netnstest.NewHost(t, "a")
			c, p := open(t, h), connect(t, h, f.network, f.listen, f.dial)
			s := lookup(t, c, p.server)
			if err := p.server.Reset(); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, p.client, unix.ECONNRESET)
			if _, err := c.Lookup(s.Local, s.Remote); !errors.Is(err, ErrNotFound) {
				t.Fatalf("look-up of a gone connection: %v", err)
			}
			if err := c.Destroy(&s); !errors.Is(err, ErrNotFound) {
				t.Fatalf("destroy of a gone connection: %v", err)
			}
			wantAccepting(t, h, p.listener, f.dial)
		})
	}
}

func TestDestroyRefuses(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c, p := open(t, h), connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	good := lookup(t, c, p.server)

	for _, state := range []State{Listen, TimeWait, Close, NewSynRecv, 0, 13, 255} {
		s := good
		s.State = state
		if err := c.Destroy(&s); !errors.Is(err, ErrRefused) {
			t.Errorf("destroy in state %v: %v", state, err)
		}
	}
	for _, cookie := range []uint64{0, noCookie} {
		s := good
		s.Cookie = cookie
		putCookie(&s.id, cookie)
		if err := c.Destroy(&s); !errors.Is(err, ErrRefused) {
			t.Errorf("destroy with cookie %#x: %v", cookie, err)
		}
	}
	if err := c.Destroy(&Socket{State: Established}); !errors.Is(err, ErrRefused) {
		t.Errorf("destroy of a made-up socket: %v", err)
	}
	wantAccepting(t, h, p.listener, "127.0.0.1")
	if !p.server.Alive() || !p.client.Alive() {
		t.Error("the connection has ended")
	}
}

func TestStaleCookieHarmsNobody(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			h := netnstest.NewHost(t, "a")
			c, p := open(t, h), connect(t, h, f.network, f.listen, f.dial)
			s := lookup(t, c, p.server)
			s.Cookie++
			putCookie(&s.id, s.Cookie)
			if err := c.Destroy(&s); !errors.Is(err, ErrNotFound) {
				t.Fatalf("got %v", err)
			}
			if _, err := p.client.Write([]byte("x")); err != nil || !p.server.Alive() {
				t.Fatalf("the connection has ended: %v", err)
			}
		})
	}
}

func TestLookupAddresses(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c, p := open(t, h), connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	local, remote := p.client.LocalAddr(), p.client.RemoteAddr()

	mapped := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	if s, err := c.Lookup(mapped(local), mapped(remote)); err != nil || s.Local != local {
		t.Errorf("look-up with mapped addresses: %v, %v", &s, err)
	}
	for _, bad := range []netip.AddrPort{{}, netip.MustParseAddrPort("[::1]:1")} {
		if _, err := c.Lookup(local, bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("look-up of a connection to %v: %v", bad, err)
		}
	}
}

func TestLinkLocal(t *testing.T) {
	a, b := netnstest.NewHost(t, "a"), netnstest.NewHost(t, "b")
	wire := netnstest.Link(t, a, b, 1)
	addLinkLocal(t, a, wire.A.Dev, "fe80::a")
	addLinkLocal(t, b, wire.B.Dev, "fe80::b")
	server := b.Listen(t, "tcp6", "[fe80::b%"+wire.B.Dev+"]:0")
	client := a.Dial(t, "tcp6", fmt.Sprintf("[fe80::b%%%s]:%d", wire.A.Dev, server.Port()), netnstest.DialOptions{})
	serverEnd := server.Next(t)
	c := open(t, a)

	local, remote := withoutZone(client.LocalAddr()), withoutZone(client.RemoteAddr())
	s, err := c.Lookup(local, remote)
	if err != nil || s.Interface == 0 || s.Local != local || s.Remote != remote {
		t.Fatalf("look-up without a zone: %+v, %v", s, err)
	}
	for _, zone := range []string{fmt.Sprint(s.Interface), wire.A.Dev} {
		scoped := netip.AddrPortFrom(local.Addr().WithZone(zone), local.Port())
		err := a.Do(func() error { _, err := c.Lookup(scoped, remote); return err })
		if err != nil {
			t.Errorf("look-up with a zone: %v", err)
		}
	}
	if _, err := c.Lookup(local, netip.AddrPortFrom(remote.Addr(), 1)); !errors.Is(err, ErrNotFound) {
		t.Errorf("look-up of nothing: %v", err)
	}
	if err := c.Destroy(&s); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, client, unix.ECONNABORTED)
	wantEnd(t, serverEnd, unix.ECONNRESET)
}

func addLinkLocal(t *testing.T, h *netnstest.Host, dev, addr string) {
	t.Helper()
	if err := h.Run(t.Context(), "ip", "addr", "add", addr+"/64", "dev", dev, "nodad"); err != nil {
		t.Fatal(err)
	}
}

func TestProbe(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	if err := open(t, h).Probe(); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutPrivilege(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	p := connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	err := h.Do(func() error {
		if err := dropPrivilege(); err != nil {
			return err
		}
		c, err := Open()
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.Probe(); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("probe: got %v, want EPERM", err)
		}
		s, err := c.Lookup(p.server.LocalAddr(), p.server.RemoteAddr())
		if err != nil {
			return err
		}
		return c.Destroy(&s)
	})
	if !errors.Is(err, unix.EPERM) || !p.server.Alive() {
		t.Fatalf("destroy: got %v, want EPERM", err)
	}
}

// dropPrivilege takes CAP_NET_ADMIN and all others from the calling thread, which h.Do throws away.
func dropPrivilege() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}

// A socket that is bound to a device is found by the device only, in both families.
func TestLookupOnDevice(t *testing.T) {
	for _, f := range []struct{ network, addr string }{{"tcp4", "127.0.0.1"}, {"tcp6", "::1"}} {
		t.Run(f.network, func(t *testing.T) {
			h := netnstest.NewHost(t, "a")
			c, server := open(t, h), h.Listen(t, f.network, netip.AddrPortFrom(netip.MustParseAddr(f.addr), 0).String())
			local, remote := dialOnLoopback(t, h, f.network, server.Addr())

			if _, err := c.Lookup(local, remote); !errors.Is(err, ErrNotFound) {
				t.Errorf("look-up without the device: %v", err)
			}
			if _, err := c.LookupOn(local, remote, 77); !errors.Is(err, ErrNotFound) {
				t.Errorf("look-up with another device: %v", err)
			}
			var listed Socket
			for _, s := range list(t, c, Query{RemotePorts: []PortRange{{server.Port(), server.Port()}}}) {
				listed = s
			}
			s, err := c.LookupOn(local, remote, listed.Interface)
			if err != nil || listed.Interface == 0 || s.Cookie != listed.Cookie || s.Interface != listed.Interface {
				t.Fatalf("listed %+v, found %+v, %v", listed, s, err)
			}
			if _, err := c.LookupOn(remote, local, listed.Interface); err != nil {
				t.Errorf("look-up with a device of a socket that is not bound: %v", err)
			}
			if err := c.Destroy(&s); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, server.Next(t), unix.ECONNRESET)
		})
	}
}

// dialOnLoopback connects a socket that is bound to the loopback device.
func dialOnLoopback(t *testing.T, h *netnstest.Host, network string, to netip.AddrPort) (local, remote netip.AddrPort) {
	t.Helper()
	bind := func(_, _ string, raw syscall.RawConn) (err error) {
		ctrl := raw.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") })
		return errors.Join(ctrl, err)
	}
	d := net.Dialer{Control: bind, Timeout: patience}
	d.SetMultipathTCP(false)
	var nc net.Conn
	if err := h.Do(func() (err error) { nc, err = d.Dial(network, to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc.LocalAddr().(*net.TCPAddr).AddrPort(), to
}
