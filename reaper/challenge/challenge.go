// Package challenge makes the TCP at one end of a connection show its true sequence numbers.
//
// It sends that end one bare ACK, which seems to come from the other end and has a sequence number outside of
// the receive window. "If an incoming segment is not acceptable, an acknowledgment should be sent in reply"
// (RFC 793 section 3.9, RFC 9293 section 3.10.7.4; Linux: tcp_validate_incoming and tcp_send_dupack in
// net/ipv4/tcp_input.c). The answer is a valid segment of the connection, and a rule that rejects it with a
// TCP reset closes the end which sent it.
//
// One challenge can stay unanswered: a firewall on the way drops it as `ct state invalid` in three of four cases (see
// forAttempt), or the end has just answered another (see Interval). Some ends never answer (see numbers). So a
// challenge that was sent is no proof that the end is closed.
package challenge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mark is the default packet mark. The table's probe chain makes packets with it untracked. It has none of the bits that
// kube-proxy (0x4000, 0x8000), Cilium (0xf00), Tailscale (0xff0000) and Calico (from 0x10000 up) go by.
const Mark = 0x63003000

// Interval is the time between two attempts at the same end. Linux answers one unacceptable segment without data
// per socket and net.ipv4.tcp_invalid_ratelimit (500 ms); keepalive probes count too.
const Interval = 600 * time.Millisecond

// Attempts is how many challenges one end gets: as many as it takes to get through for sure, see forAttempt.
const Attempts = 4

var (
	// ErrAddress says that an end has no port, no address, or one that no TCP connection can have.
	ErrAddress = errors.New("not an address of a TCP end")
	// ErrFamily says that one end is IPv4 and the other IPv6.
	ErrFamily = errors.New("ends of different address families")
)

// Sender sends challenges. Its methods may be called from any goroutine.
type Sender struct {
	base numbers

	mu     sync.Mutex // guards all below
	v4, v6 *socket    // v6 is nil when the kernel has no IPv6
	packet []byte
	closed bool
}

// Open opens the raw sockets in the network namespace of the calling thread. The packets carry the mark.
// The error is EPERM without CAP_NET_RAW or, before Linux 5.17, CAP_NET_ADMIN (sk_setsockopt, SO_MARK). A kernel without
// IPv6 is fine.
func Open(mark uint32) (*Sender, error) {
	return open(mark, openSocket)
}

func open(mark uint32, openSocket func(family int, mark uint32) (*socket, error)) (*Sender, error) {
	v4, err := openSocket(unix.AF_INET, mark)
	if err != nil {
		return nil, openError("IPv4", err)
	}
	v6, err := openSocket(unix.AF_INET6, mark)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		_ = v4.close()
		return nil, openError("IPv6", err)
	}
	base := numbers{seq: rand.Uint32(), ack: rand.Uint32()}
	return &Sender{base: base, v4: v4, v6: v6, packet: make([]byte, 0, maxPacket)}, nil
}

func openError(family string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("open %s raw socket (it needs CAP_NET_RAW and CAP_NET_ADMIN): %w", family, err)
	}
	return fmt.Errorf("open %s raw socket: %w", family, err)
}

// Send challenges the end at to, as if from the end at from. Attempts count from 0, and each has other numbers.
// Behind NAT both addresses are those that the challenged end knows. A link-local to needs a zone.
//
// Send never blocks. It fails with ErrAddress, ErrFamily, EAFNOSUPPORT (no IPv6 here), os.ErrClosed, EPERM (a
// firewall rule on output dropped the packet), EAGAIN or ENOBUFS (too many at once, or too many wait for dead
// neighbours: the next attempt makes up for it), or what routing says: ENETUNREACH, EHOSTUNREACH, EACCES.
func (s *Sender) Send(from, to netip.AddrPort, attempt int) error {
	from, to = unmap(from), unmap(to)
	err := checkEnds(from, to)
	if err == nil {
		err = s.send(from, to, s.base.forAttempt(attempt))
	}
	if err != nil {
		return fmt.Errorf("challenge %s as %s: %w", to, from, err)
	}
	return nil
}

func (s *Sender) send(from, to netip.AddrPort, n numbers) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	sock := s.v4
	if to.Addr().Is6() {
		sock = s.v6
	}
	if sock == nil {
		return unix.EAFNOSUPPORT
	}
	s.packet = appendPacket(s.packet[:0], from, to, n)
	return sock.send(s.packet, from.Addr(), to.Addr())
}

// Close closes the sockets. A second Close does nothing.
func (s *Sender) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return errors.Join(s.v4.close(), s.v6.close())
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func checkEnds(from, to netip.AddrPort) error {
	if !isEnd(from) || !isEnd(to) {
		return ErrAddress
	}
	if from.Addr().Is4() != to.Addr().Is4() {
		return ErrFamily
	}
	return nil
}

func isEnd(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().IsUnspecified() && !a.Addr().IsMulticast()
}
