package netnstest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Server accepts TCP connections, never MPTCP, until it is closed.
type Server struct {
	listener net.Listener
	addr     netip.AddrPort

	mu      sync.Mutex
	conns   []*Conn
	taken   map[*Conn]bool
	changed chan struct{} // closed and replaced when conns or err change
	err     error
}

// Serve listens on addr, which must be a literal. network is tcp4, tcp6, or tcp: with [::]:port that is a
// dual-stack socket. Port 0 picks a free one.
func (h *Host) Serve(network, addr string) (*Server, error) {
	lc := net.ListenConfig{KeepAlive: -1} // idle is idle
	lc.SetMultipathTCP(false)
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve on %s: %w", h.name, err)
	}
	s := &Server{listener: l, addr: unmap(l.Addr()), taken: map[*Conn]bool{}, changed: make(chan struct{})}
	if err := h.closeWith(func() { s.Close() }); err != nil {
		return nil, err
	}
	go s.accept()
	return s, nil
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		s.mu.Lock()
		if err == nil {
			s.conns = append(s.conns, newConn(c.(*net.TCPConn), time.Now()))
		}
		s.err = err
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Addr is the address that the server listens on.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Port is the port that the server listens on.
func (s *Server) Port() uint16 { return s.addr.Port() }

// Err is nil while the server accepts, and then what ended it.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Conns are all connections accepted so far, the oldest first.
func (s *Server) Conns() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Conn(nil), s.conns...)
}

// Accept returns the oldest connection that neither Accept nor Peer has returned, and waits for one if needed.
func (s *Server) Accept(timeout time.Duration) (*Conn, error) {
	c, err := s.await(timeout, func(c *Conn) bool { return !s.taken[c] })
	if err != nil {
		return nil, fmt.Errorf("accept on %s: %w", s.addr, err)
	}
	return c, nil
}

// Peer returns the server's end of a client's connection, and waits for it if needed. It goes by the client's address,
// so behind source NAT use Accept.
func (s *Server) Peer(client *Conn, timeout time.Duration) (*Conn, error) {
	c, err := s.await(timeout, func(c *Conn) bool {
		return c.remote == client.local && c.Opened.After(client.Started)
	})
	if err != nil {
		return nil, fmt.Errorf("find the server's end of %s: %w", client, err)
	}
	return c, nil
}

var errTimeout = errors.New("no such connection before the timeout")

func (s *Server) await(timeout time.Duration, match func(*Conn) bool) (*Conn, error) {
	deadline := time.After(timeout)
	for {
		c, changed, err := s.find(match)
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-changed:
		case <-deadline:
			return nil, errTimeout
		}
	}
}

func (s *Server) find(match func(*Conn) bool) (*Conn, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if match(c) {
			s.taken[c] = true
			return c, nil, nil
		}
	}
	return nil, s.changed, s.err
}

// Close stops listening and closes all connections.
func (s *Server) Close() error {
	err := s.listener.Close()
	for _, c := range s.Conns() {
		_ = c.Close()
	}
	return err
}

// DialOptions are the choices of Connect; the zero value is fine.
type DialOptions struct {
	From    netip.AddrPort // local address; a zero address or port is left to the kernel
	Timeout time.Duration  // 5 s when zero
	Device  string         // bound to this device (SO_BINDTODEVICE)
}

// FromPort is the local port p, on whatever address fits.
func FromPort(p uint16) DialOptions {
	return DialOptions{From: netip.AddrPortFrom(netip.Addr{}, p)}
}

// Connect opens a connection to addr, a literal. network is tcp4 or tcp6. A local port may be used again at
// once after a reset, and while in TIME_WAIT for another destination.
func (h *Host) Connect(network, addr string, opts DialOptions) (*Conn, error) {
	d := net.Dialer{Timeout: opts.Timeout, Control: opts.control, KeepAlive: -1}
	d.SetMultipathTCP(false)
	if d.Timeout == 0 {
		d.Timeout = 5 * time.Second
	}
	if opts.From != (netip.AddrPort{}) {
		d.LocalAddr = &net.TCPAddr{IP: opts.From.Addr().AsSlice(), Port: int(opts.From.Port())}
	}
	started := time.Now()
	var nc net.Conn
	err := h.Do(func() (err error) {
		nc, err = d.Dial(network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect from %s: %w", h.name, err)
	}
	c := newConn(nc.(*net.TCPConn), started)
	return c, h.closeWith(func() { c.Close() })
}

// control sets up the socket before it connects.
func (o *DialOptions) control(_, _ string, raw syscall.RawConn) error {
	var err error
	ctrl := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if o.Device != "" {
			err = errors.Join(err, unix.BindToDevice(int(fd), o.Device))
		}
	})
	return errors.Join(ctrl, err)
}
