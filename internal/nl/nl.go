// Package nl speaks raw netlink to the kernel: it sends one request and hands each answer to a function
// without copying it and without allocating per message.
//
// It knows messages and attributes, and nothing of what is in them.
package nl

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// The kernel builds the parts of a dump in buffers of at most 32 KiB (net/netlink/af_netlink.c, netlink_dump),
	// so a read that fills this one was cut.
	bufferSize = 64 << 10

	// answerTimeout bounds the wait for each read.
	answerTimeout = 5 * time.Second
)

// Handler gets one answer: its netlink message type and what follows the netlink header. The payload is valid
// until the handler returns. A handler must not use the Conn that calls it.
type Handler func(typ uint16, payload []byte) error

// Conn is a netlink socket connected to the kernel. It belongs to the network namespace of the thread that called
// Dial. It must not be used by two goroutines at once.
type Conn struct {
	fd   int
	port uint32 // our address; the kernel puts it in every answer
	seq  uint32 // of the request in hand
	buf  []byte
	rest []byte // of buf: what was read and not yet handed out
}

// Close closes the socket.
func (c *Conn) Close() error {
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// Dump sends req, which AppendHeader began, as a dump request and calls fn for every entry.
//
// ErrInterrupted means that the dump is incomplete: entries may have come twice or not at all, and the caller starts
// again. An error from fn stops the calls, not the dump: its rest is read and thrown away, so that the Conn
// stays usable, and fn's error is returned as it is. A refusal by the kernel is an *Error.
func (c *Conn) Dump(req []byte, fn Handler) error {
	if err := c.send(req, unix.NLM_F_DUMP); err != nil {
		return err
	}
	var first error // once it is set, the rest is only drained
	for {
		m, err := c.next()
		if err != nil && !lost(err) {
			return keep(first, err)
		}
		switch {
		case err != nil: // there is no message
		case m.ends():
			err = m.result()
		case first == nil:
			err = fn(m.typ, m.payload)
		}
		first = keep(first, err)
		if m.flags&unix.NLM_F_DUMP_INTR != 0 {
			first = keep(first, ErrInterrupted)
		}
		if m.ends() {
			return first
		}
	}
}

// lost tells whether part of a dump is lost, but its end may still come.
func lost(err error) bool { return errors.Is(err, ErrInterrupted) || errors.Is(err, ErrMalformed) }

func keep(first, err error) error {
	if first != nil {
		return first
	}
	return err
}

// Request sends req, which AppendHeader began, and calls fn for the one answer. The request must be of a kind that is
// answered with one message. Its refusal by the kernel is an *Error. fn's error is returned as it is.
func (c *Conn) Request(req []byte, fn Handler) error {
	if err := c.send(req, 0); err != nil {
		return err
	}
	m, err := c.next()
	switch {
	case err != nil:
		return err
	case m.ends():
		return m.result()
	}
	return fn(m.typ, m.payload)
}

// Execute sends req, which AppendHeader began, and waits for the kernel's acknowledgement. A refusal is an *Error.
func (c *Conn) Execute(req []byte) error {
	if err := c.send(req, unix.NLM_F_ACK); err != nil {
		return err
	}
	return c.acknowledged()
}

// ExecuteBoth is Execute for two requests in one write: the kernel handles the second right after the first, without
// going back to us in between, and also when it has refused the first (netlink_rcv_skb).
func (c *Conn) ExecuteBoth(first, second []byte) (err1, err2 error) {
	seq := c.seq + 1
	if err := finishHeader(first, unix.NLM_F_ACK|unix.NLM_F_REQUEST, seq, c.port); err != nil {
		return err, err
	}
	if err := finishHeader(second, unix.NLM_F_ACK|unix.NLM_F_REQUEST, seq+1, c.port); err != nil {
		return err, err
	}
	c.seq, c.rest = seq, nil
	if err := c.write(slices.Concat(first, second)); err != nil {
		c.seq++
		return err, err
	}
	err1 = c.acknowledged()
	c.seq++
	return err1, c.acknowledged()
}

// acknowledged waits for the acknowledgement of the request in hand.
func (c *Conn) acknowledged() error {
	for {
		m, err := c.next()
		if err != nil {
			return err
		}
		if m.ends() {
			return m.result()
		}
	}
}

// send completes the header of req and sends it.
func (c *Conn) send(req []byte, flags uint16) error {
	c.seq++
	c.rest = nil
	if err := finishHeader(req, flags|unix.NLM_F_REQUEST, c.seq, c.port); err != nil {
		return err
	}
	return c.write(req)
}

func (c *Conn) write(b []byte) error {
	if _, err := unix.Write(c.fd, b); err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	return nil
}

// next returns the next message that answers the request in hand. Others are left from a request that was given up.
func (c *Conn) next() (message, error) {
	for {
		if len(c.rest) == 0 {
			if err := c.read(); err != nil {
				return message{}, err
			}
		}
		m, rest, err := split(c.rest)
		c.rest = rest
		if err != nil {
			return message{}, err
		}
		if m.seq == c.seq && m.port == c.port && !m.empty() {
			return m, nil
		}
	}
}

// read fills the buffer with at least one message.
func (c *Conn) read() error {
	n, err := c.readOnce()
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return fmt.Errorf("read netlink answer: %w: %w", ErrInterrupted, err)
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("read netlink answer: %w after %v", ErrTimeout, answerTimeout)
	case err != nil:
		return fmt.Errorf("read netlink answer: %w", err)
	case n == 0:
		return fmt.Errorf("read netlink answer: %w", io.ErrUnexpectedEOF)
	case n == len(c.buf):
		return fmt.Errorf("read netlink answer: %w: longer than %d bytes", ErrMalformed, n)
	}
	c.rest = c.buf[:n]
	return nil
}

// readOnce starts again after a signal: with a timeout on the socket the kernel doesn't (signal(7)), and the
// Go runtime sends itself signals. A signal takes no answer away.
func (c *Conn) readOnce() (int, error) {
	deadline := time.Now().Add(answerTimeout)
	for {
		n, err := unix.Read(c.fd, c.buf)
		if err != unix.EINTR {
			return n, err
		}
		if time.Now().After(deadline) {
			return 0, unix.EAGAIN
		}
	}
}
