// Package sockdiag finds the TCP sockets of a network namespace, and ends them.
//
// It speaks NETLINK_SOCK_DIAG (net/ipv4/inet_diag.c, net/ipv4/tcp_diag.c). A socket is only ended by the identity and
// cookie with which the kernel reported it, because by address alone the kernel picks a listener when the
// connection is gone.
package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

var (
	// ErrNotFound means that there is no such connection (any more).
	ErrNotFound = errors.New("no such TCP connection")

	// ErrRefused means that a socket must not be destroyed: it isn't an open connection, or not known exactly.
	ErrRefused = errors.New("not an open connection with a cookie")

	// ErrUnsupported means that the kernel can't destroy sockets.
	ErrUnsupported = errors.New("this kernel has no CONFIG_INET_DIAG_DESTROY")

	// ErrAmbiguous means that connections on two links have the same link-local addresses: look up with a zone.
	ErrAmbiguous = errors.New("the same link-local connection on two links")

	// ErrInterrupted means that a list is incomplete, and has to be made again.
	ErrInterrupted = nl.ErrInterrupted

	// ErrMalformed means that a message from the kernel contradicts itself.
	ErrMalformed = nl.ErrMalformed
)

// receiveBuffer holds some parts of a list, of at most 32 KiB each.
const receiveBuffer = 256 << 10

// Socket is one TCP socket as the kernel reported it.
type Socket struct {
	// The addresses have no zone. IPv4 on a dual-stack socket is unmapped.
	Local, Remote netip.AddrPort

	State      State
	Cookie     uint64 // unique since boot
	UID, Inode uint32 // both 0 when no process holds the socket
	Interface  uint32 // index of the device that the socket is bound to, as all with link-local addresses are; or 0

	// How long ago, in milliseconds, data was sent, data came, an ACK came: from tcp_info, if HasInfo. They wrap
	// around after 49 days.
	LastSent, LastRecv, LastAck time.Duration
	HasInfo                     bool

	family uint8    // with id, what Destroy sends back
	id     [48]byte // struct inet_diag_sockid
}

// String names both ends.
func (s *Socket) String() string { return fmt.Sprintf("%s -> %s", s.Local, s.Remote) }

// Conn asks the kernel about the sockets of the network namespace that it was opened in. It must not be used by two
// goroutines at once.
type Conn struct {
	nl  *nl.Conn
	req []byte
}

// Open opens a Conn. To look and list needs no privilege.
func Open() (*Conn, error) {
	conn, err := nl.Dial(unix.NETLINK_SOCK_DIAG, receiveBuffer)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return &Conn{nl: conn}, nil
}

// Close closes the Conn.
func (c *Conn) Close() error { return c.nl.Close() }
