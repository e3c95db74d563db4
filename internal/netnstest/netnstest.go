// Package netnstest makes test hosts out of network namespaces, without root.
//
// A test binary enters a user namespace of its own once (Main or Wrap). Inside, OpenHost and
// NewHost make as many hosts as a test needs; Join wires two of them together; Serve and Connect
// open real TCP connections and tell when and how each end of them ended.
//
// Nothing here imports testing, so the curfew binary can use it for its self-test.
package netnstest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Host is one network namespace. Its methods may be called from any goroutine.
type Host struct {
	name string
	ns   *os.File

	mu      sync.Mutex
	ends    []End // its side of each wire, in order
	gateway End   // the default route, see RouteVia
	closers []func()
	closed  bool
}

// OpenHost makes a host with an empty namespace in which only lo exists, and is up.
// Close releases it.
func OpenHost(name string) (*Host, error) {
	h := &Host{name: name}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network namespace (is TestMain calling netnstest.Main?): %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		var err error
		h.ns, err = os.Open(ownNamespace)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open host %s: %w", name, err)
	}
	return h, nil
}

// Name is the name given to OpenHost.
func (h *Host) Name() string { return h.name }

// Close ends the host's servers and connections and lets go of its namespace. The kernel removes the
// namespace when nothing else uses it. A second Close does nothing.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	closers := h.closers
	h.mu.Unlock()
	for _, c := range closers {
		c()
	}
	return h.ns.Close()
}

// Do runs fn on a thread inside the host's namespace and returns its error. Calls run side by side, each on
// its own thread, which dies afterwards. What fn opens on its own goroutine (sockets, files in /proc/sys/net,
// child processes) belongs to the namespace; goroutines that fn starts do not.
func (h *Host) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter host %s: %w", h.name, err)
		}
		return fn()
	})
}

// Addr4 is the host's IPv4 address on its first wire, or 127.0.0.1.
func (h *Host) Addr4() netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ends) == 0 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return h.ends[0].Addr4
}

// Addr6 is the host's IPv6 address on its first wire, or ::1.
func (h *Host) Addr6() netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ends) == 0 {
		return netip.IPv6Loopback()
	}
	return h.ends[0].Addr6
}

var errHostClosed = errors.New("host is closed")

// closeWith has fn called by Close, or at once when the host is closed already.
func (h *Host) closeWith(fn func()) error {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.closers = append(h.closers, fn)
	}
	h.mu.Unlock()
	if closed {
		fn()
		return errHostClosed
	}
	return nil
}
