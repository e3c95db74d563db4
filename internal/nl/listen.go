package nl

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrOverrun means that the kernel had messages for a Listener and no room for them. All that was queued is thrown
// away then, because the kernel loses more without a word until the queue is empty (netlink_overrun in
// net/netlink/af_netlink.c). Whoever gets it reads anew what the messages are about; the Listener goes on.
var ErrOverrun = errors.New("messages of the kernel were lost")

const (
	// listenBuffer is the room for messages that were not read yet, where the process may have as much.
	listenBuffer = 8 << 20

	// maxDrain bounds the reads that empty a queue. It is several times what fits into listenBuffer.
	maxDrain = 1 << 16
)

// Listener reads what the kernel sends to multicast groups. It belongs to the network namespace of the thread that
// called Subscribe. Receive and Discard must not be called by two goroutines at once; Close may be called by any.
type Listener struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
	rest []byte // of buf: what was read and not yet handed out
	lost bool   // after an overrun, until the queue was empty

	// The last read, and the two kinds of it; kept here so that a read allocates nothing.
	n           int
	err         error
	wait, retry func(fd uintptr) bool
}

// Subscribe listens to groups (unix.NFNLGRP_* and the like) of a netlink family (unix.NETLINK_*).
func Subscribe(family int, groups ...uint32) (*Listener, error) {
	return SubscribeFiltered(family, nil, groups...)
}

// SubscribeFiltered is Subscribe for the messages that a classic BPF program takes. The program sees what the kernel
// sends in one piece, beginning with its first netlink header; what it doesn't take neither wakes the reader nor needs
// room. The system's net.core.optmem_max limits its length (ENOMEM). No program takes all.
func SubscribeFiltered(family int, filter []unix.SockFilter, groups ...uint32) (*Listener, error) {
	c, err := Dial(family, listenBuffer)
	if err != nil {
		return nil, err
	}
	if err := join(c.fd, filter, groups); err != nil {
		unix.Close(c.fd)
		return nil, err
	}
	return newListener(c.fd)
}

// join sets the filter first, so that no message comes around it.
func join(fd int, filter []unix.SockFilter, groups []uint32) error {
	if len(filter) > 0 {
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			return fmt.Errorf("set netlink filter: %w", err)
		}
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group)); err != nil {
			return fmt.Errorf("join netlink group %d: %w", group, err)
		}
	}
	return nil
}

// newListener owns fd. Non-blocking, it is in the runtime's poller: a reader takes no thread, and Close wakes it.
func newListener(fd int) (*Listener, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set netlink socket non-blocking: %w", err)
	}
	l := &Listener{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, bufferSize)}
	raw, err := l.file.SyscallConn()
	if err == nil {
		err = l.file.SetReadDeadline(time.Time{}) // fails when the poller doesn't have it
	}
	if err != nil {
		l.file.Close()
		return nil, fmt.Errorf("poll netlink socket: %w", err)
	}
	l.raw = raw
	l.retry = func(fd uintptr) bool { l.readOnce(int(fd)); return true }
	l.wait = func(fd uintptr) bool { l.readOnce(int(fd)); return l.err != unix.EAGAIN }
	return l, nil
}

func (l *Listener) readOnce(fd int) {
	for {
		if l.n, l.err = unix.Read(fd, l.buf); l.err != unix.EINTR {
			return
		}
	}
}

// Close ends the Listener. A Receive that waits answers os.ErrClosed, as does each later one.
func (l *Listener) Close() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// Receive waits for the next message and answers its type and what follows the netlink header, valid until the next call.
// ErrOverrun and ErrMalformed say that messages are missing; the next call goes on. After another error the Listener is
// of no use.
func (l *Listener) Receive() (typ uint16, payload []byte, err error) {
	for {
		if len(l.rest) == 0 {
			if err := l.fill(); err != nil {
				return 0, nil, fmt.Errorf("read netlink message: %w", err)
			}
		}
		m, rest, err := split(l.rest)
		l.rest = rest
		if err != nil {
			return 0, nil, fmt.Errorf("read netlink message: %w", err)
		}
		if !m.empty() {
			return m.typ, m.payload, nil
		}
	}
}

// Discard throws away what has come already. It is ErrOverrun when some of that was lost before.
func (l *Listener) Discard() error {
	l.rest = nil
	lost, err := l.drain()
	if err == nil && lost {
		err = ErrOverrun
	}
	if err != nil {
		return fmt.Errorf("discard netlink messages: %w", err)
	}
	return nil
}

// fill waits for a read's worth of messages.
func (l *Listener) fill() error {
	if l.lost {
		return l.overrun()
	}
	if l.raw.Read(l.wait) != nil {
		return os.ErrClosed // the only error that a raw read has of its own
	}
	switch {
	case l.err == unix.ENOBUFS:
		return l.overrun()
	case l.err != nil:
		return l.err
	case l.n == 0:
		return os.ErrClosed
	case l.n == len(l.buf):
		return fmt.Errorf("%w: longer than %d bytes", ErrMalformed, l.n)
	}
	l.rest = l.buf[:l.n]
	return nil
}

func (l *Listener) overrun() error {
	l.lost = true
	if _, err := l.drain(); err != nil {
		return err
	}
	return ErrOverrun
}

// drain reads until nothing is left, or until it has to be tried again. It tells whether messages were lost.
func (l *Listener) drain() (lost bool, err error) {
	lost = l.lost
	for range maxDrain {
		if l.raw.Read(l.retry) != nil {
			return lost, os.ErrClosed
		}
		switch {
		case l.err == unix.EAGAIN:
			l.lost = false
			return lost, nil
		case l.err == unix.ENOBUFS:
			l.lost, lost = true, true
		case l.err != nil:
			return lost, l.err
		case l.n == 0:
			return lost, os.ErrClosed
		}
	}
	return lost, nil
}
