package netnstest

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespaceOf is what /proc/thread-self/ns/net says inside h.
func namespaceOf(t *testing.T, h *Host) uint64 {
	t.Helper()
	var ino uint64
	err := h.Do(func() (err error) {
		ino, err = namespaceID()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ino
}

func TestHostsHaveNamespacesOfTheirOwn(t *testing.T) {
	own, err := namespaceID()
	if err != nil {
		t.Fatal(err)
	}
	a, b := namespaceOf(t, NewHost(t, "a")), namespaceOf(t, NewHost(t, "b"))
	if a == b || a == own || b == own {
		t.Fatalf("namespaces are shared: own %d, a %d, b %d", own, a, b)
	}
}

func TestClosedHostRefuses(t *testing.T) {
	h := NewHost(t, "h")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	if err := h.Do(func() error { return nil }); err == nil {
		t.Fatal("Do works on a closed host")
	}
}

func TestHostEndsWithItsTraffic(t *testing.T) {
	h := NewHost(t, "h")
	s := h.Listen(t, "tcp4", "127.0.0.1:0")
	c := h.Dial(t, "tcp4", s.Addr().String(), DialOptions{})
	h.Close()
	if err := c.WaitEnd(patience); err != nil {
		t.Fatal(err)
	}
	if s.Err() == nil {
		waitFor(t, func() bool { return s.Err() != nil })
	}
}

func TestSocketsLiveInTheHost(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	for network, addr := range map[string]string{"tcp4": "127.0.0.1:4000", "tcp6": "[::1]:4000", "tcp": "[::]:4001"} {
		a.Listen(t, network, addr)
		b.Listen(t, network, addr) // would be "address in use" in one namespace
		dial := "tcp4"
		if network == "tcp6" {
			dial = "tcp6"
		}
		addr = strings.Replace(addr, "[::]", "127.0.0.1", 1)
		a.Dial(t, dial, addr, DialOptions{})
		if _, err := net.DialTimeout(dial, addr, time.Second); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial %s outside of the host: %v, want connection refused", addr, err)
		}
	}
}
