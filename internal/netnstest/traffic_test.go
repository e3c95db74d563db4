package netnstest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }

func exitGoroutine(context.Context) { runtime.Goexit() }

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("condition not met in time")
		}
	}
}

// pair is a connection over loopback: the client's end and the server's.
func pair(t *testing.T) (client, server *Conn) {
	t.Helper()
	h := NewHost(t, "h")
	s := h.Listen(t, "tcp4", "127.0.0.1:0")
	client = h.Dial(t, "tcp4", s.Addr().String(), DialOptions{})
	return client, s.Conn(t, client)
}

// ends checks that c ends with want, and that it says when.
func ends(t *testing.T, c *Conn, want error) {
	t.Helper()
	if err := c.WaitEnd(patience); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(c.Err(), want) {
		t.Errorf("%s ended with %v, want %v", c, c.Err(), want)
	}
	if c.Alive() || c.EndedAt().Before(c.Opened) || time.Since(c.EndedAt()) > patience {
		t.Errorf("%s: alive %v, ended at %v", c, c.Alive(), c.EndedAt())
	}
}

func TestHowConnectionsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		end            func(*Conn) error
		here, there    error
		busyC, busySrv bool
	}{
		"idle close":         {(*Conn).Close, net.ErrClosed, io.EOF, false, false},
		"idle reset":         {(*Conn).Reset, net.ErrClosed, unix.ECONNRESET, false, false},
		"reset, busy peer":   {(*Conn).Reset, net.ErrClosed, unix.ECONNRESET, false, true},
		"reset, both busy":   {(*Conn).Reset, net.ErrClosed, unix.ECONNRESET, true, true},
		"half close, no one": {(*Conn).CloseWrite, io.EOF, io.EOF, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := pair(t)
			if !c.Alive() || c.Err() != nil || !c.EndedAt().IsZero() {
				t.Fatalf("new connection: alive %v, err %v, ended %v", c.Alive(), c.Err(), c.EndedAt())
			}
			if tc.busyC {
				c.Busy(time.Millisecond)
				waitFor(t, func() bool { return s.Received() > 2 })
			}
			if tc.busySrv {
				s.Busy(time.Millisecond)
				waitFor(t, func() bool { return c.Received() > 2 })
			}
			if err := tc.end(c); err != nil {
				t.Fatal(err)
			}
			ends(t, c, tc.here)
			ends(t, s, tc.there)
		})
	}
}

func TestHalfClosedConnectionLives(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*Conn) error
		want error
	}{
		"reset": {(*Conn).Reset, unix.EPIPE}, // what Linux reports in CLOSE_WAIT
		"close": {(*Conn).Close, io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := pair(t)
			c.AllowHalfClose()
			s.AllowHalfClose()
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := s.WaitEnd(50 * time.Millisecond); err == nil {
				t.Fatalf("ended at the FIN: %v", s.Err())
			}
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return c.Received() == 1 })
			if name == "close" {
				// The last FIN from s ends both ends; c sees it as its peer's FIN.
				if err := s.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				ends(t, s, tc.want)
				return
			}
			if err := tc.end(c); err != nil {
				t.Fatal(err)
			}
			ends(t, s, tc.want)
		})
	}
}

func TestDualStackServer(t *testing.T) {
	h := NewHost(t, "h")
	s := h.Listen(t, "tcp", "[::]:0")
	for network, ip := range map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1"} {
		to := netip.AddrPortFrom(netip.MustParseAddr(ip), s.Port())
		c := h.Dial(t, network, to.String(), DialOptions{})
		if peer := s.Conn(t, c); peer.LocalAddr() != to {
			t.Errorf("server's end has %s, want %s", peer.LocalAddr(), to)
		}
	}
}

func TestFixedSourcePortCanBeReused(t *testing.T) {
	h := NewHost(t, "h")
	s := h.Listen(t, "tcp4", "127.0.0.1:0")
	var last *Conn
	for range 3 {
		c := h.Dial(t, "tcp4", s.Addr().String(), FromPort(40000))
		peer := s.Conn(t, c)
		if c.LocalAddr().Port() != 40000 || peer == last {
			t.Fatalf("local address %s, same peer as before: %v", c.LocalAddr(), peer == last)
		}
		last = peer
		if err := c.Reset(); err != nil {
			t.Fatal(err)
		}
		ends(t, peer, unix.ECONNRESET)
	}
}

func TestSourcePortInTimeWaitCanBeReused(t *testing.T) {
	h := NewHost(t, "h")
	for range 2 {
		s := h.Listen(t, "tcp4", "127.0.0.1:0")
		c := h.Dial(t, "tcp4", s.Addr().String(), FromPort(40000))
		peer := s.Conn(t, c)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		ends(t, peer, io.EOF)
	}
}

func TestSourceAddress(t *testing.T) {
	h := NewHost(t, "h")
	s := h.Listen(t, "tcp4", "127.0.0.1:0")
	from := netip.MustParseAddrPort("127.0.0.7:40001")
	if c := h.Dial(t, "tcp4", s.Addr().String(), DialOptions{From: from}); c.LocalAddr() != from {
		t.Fatalf("local address %s, want %s", c.LocalAddr(), from)
	}
}

func TestAcceptGivesEachConnectionOnce(t *testing.T) {
	h := NewHost(t, "h")
	s := h.Listen(t, "tcp4", "127.0.0.1:0")
	first := h.Dial(t, "tcp4", s.Addr().String(), DialOptions{})
	s.Conn(t, first)
	second := h.Dial(t, "tcp4", s.Addr().String(), DialOptions{})
	if got := s.Next(t); got.RemoteAddr() != second.LocalAddr() {
		t.Fatalf("got %s, want the peer of %s", got, second)
	}
	if c, err := s.Accept(10 * time.Millisecond); !errors.Is(err, errTimeout) {
		t.Fatalf("got %v, %v after the last connection", c, err)
	}
	if len(s.Conns()) != 2 {
		t.Fatalf("%d connections, want 2", len(s.Conns()))
	}
}

// A dial that hangs must not keep the host from doing other things.
func TestSlowDialDoesNotBlock(t *testing.T) {
	h := NewHost(t, "h")
	drop := "table inet x { chain c { type filter hook output priority 0; tcp dport 4444 drop; }\n}\n"
	if _, err := h.Pipe(t.Context(), drop, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.Connect("tcp4", "127.0.0.1:4444", DialOptions{Timeout: time.Second})
		done <- err
	}()
	if _, err := h.Sysctl("net.ipv4.ip_default_ttl"); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if err := <-done; !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("dial to a silent port: %v, want a timeout", err)
	}
}

func TestPlainTCPOnly(t *testing.T) {
	c, s := pair(t)
	for _, end := range []*Conn{c, s} {
		if mptcp, err := end.tcp.MultipathTCP(); err != nil || mptcp {
			t.Errorf("%s: MPTCP %v, %v", end, mptcp, err)
		}
	}
}

func TestKernelTestsAreLogged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	t.Setenv(logVar, path)
	NewHost(t, "a")
	NewHost(t, "b")
	line := filepath.Base(os.Args[0]) + " " + t.Name() + "\n"
	if data, err := os.ReadFile(path); err != nil || string(data) != line+line {
		t.Fatalf("log holds %q, %v; want twice %q", data, err, line)
	}
}
