package netnstest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one end of a TCP connection. It reads all the time, so it knows at once when the connection
// ends. Its methods may be called from any goroutine.
type Conn struct {
	Started time.Time // before connect; for an accepted connection the same as Opened
	Opened  time.Time // connect or accept returned

	tcp           *net.TCPConn
	local, remote netip.AddrPort
	received      atomic.Int64
	sent          atomic.Int64
	damaged       atomic.Int64 // the first damaged byte plus 1, see Damage
	halfClose     atomic.Bool
	finSent       atomic.Bool

	mu       sync.Mutex // held while writing, see writeLocked
	failed   error      // what a write has seen
	failedAt time.Time
	err      error
	endedAt  time.Time
	ended    chan struct{}
}

func newConn(tcp *net.TCPConn, started time.Time) *Conn {
	c := &Conn{Started: started, Opened: time.Now(), tcp: tcp, ended: make(chan struct{})}
	c.local, c.remote = unmap(tcp.LocalAddr()), unmap(tcp.RemoteAddr())
	go c.read()
	return c
}

func unmap(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// LocalAddr is this end's address, IPv4 also on a dual-stack socket.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr is the other end's address, IPv4 also on a dual-stack socket.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// Received is the number of bytes that have arrived.
func (c *Conn) Received() int64 { return c.received.Load() }

// Ended is closed when the connection has ended.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Alive tells whether the connection has not ended yet.
func (c *Conn) Alive() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// EndedAt is the time at which the end was seen; zero while alive.
func (c *Conn) EndedAt() time.Time {
	if c.Alive() {
		return time.Time{}
	}
	return c.endedAt
}

// Err is nil while alive, and then what ended the connection: io.EOF (the peer closed), net.ErrClosed (this end
// closed), or an error that is ECONNRESET, ECONNABORTED or the like. Compare with errors.Is.
func (c *Conn) Err() error {
	if c.Alive() {
		return nil
	}
	return c.err
}

// WaitEnd waits until the connection has ended. Its error means that it had not by the timeout.
func (c *Conn) WaitEnd(timeout time.Duration) error {
	if !c.Alive() {
		return nil // also when there is no time left
	}
	select {
	case <-c.ended:
		return nil
	case <-time.After(timeout):
		return fmt.Errorf("%s: connection still alive after %v", c, timeout)
	}
}

// String names both ends.
func (c *Conn) String() string { return fmt.Sprintf("%s -> %s", c.local, c.remote) }

// Busy writes a byte at every interval until the connection ends.
func (c *Conn) Busy(interval time.Duration) { c.Stream(interval, 1) }

// Stream sends n bytes at every interval until the connection ends.
func (c *Conn) Stream(interval time.Duration, n int) {
	go func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for c.Send(n) == nil {
			select {
			case <-tick.C:
			case <-c.ended:
				return
			}
		}
	}()
}

// Write sends b.
func (c *Conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.writeLocked(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// writeLocked needs the lock, because the kernel gives a socket's error only once: when the write takes it, the
// read sees a plain EOF, and must not be the first to tell. EPIPE says that the read has taken the error. It is the read
// that ends the connection, after all data that has arrived.
func (c *Conn) writeLocked(b []byte) error {
	n, err := c.tcp.Write(b)
	c.sent.Add(int64(n))
	if err != nil && !errors.Is(err, unix.EPIPE) && c.failed == nil {
		c.failed, c.failedAt = err, time.Now()
	}
	return err
}

func (c *Conn) read() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.tcp.Read(buf)
		c.inspect(c.received.Load(), buf[:n])
		c.received.Add(int64(n))
		if errors.Is(err, io.EOF) && c.halfClose.Load() {
			err = c.awaitDeath()
		}
		if err != nil {
			now := time.Now()
			c.mu.Lock()
			c.end(err, now)
			c.mu.Unlock()
			return
		}
	}
}

// end is called by the read, once, with the lock held. Closing frees the local port.
func (c *Conn) end(err error, at time.Time) {
	if c.failed != nil {
		err, at = c.failed, c.failedAt
	}
	c.err, c.endedAt = err, at
	close(c.ended)
	_ = c.tcp.Close()
}

// AllowHalfClose makes the connection outlive the peer's FIN; call it before the FIN can arrive.
func (c *Conn) AllowHalfClose() { c.halfClose.Store(true) }

// awaitDeath waits, after the peer's FIN, for a reset or for the end of the TCP connection.
func (c *Conn) awaitDeath() error {
	raw, err := c.tcp.SyscallConn()
	if err != nil {
		return err
	}
	death := io.EOF
	err = raw.Read(func(fd uintptr) bool {
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && n != 0 {
			death = unix.Errno(n)
			return true
		}
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
		closed := err != nil || info.State == unix.BPF_TCP_CLOSE
		if closed && !c.finSent.Load() {
			death = unix.EPIPE // only a reset can have closed it; a write has taken the error
		}
		return closed
	})
	if err != nil {
		return err
	}
	return death
}

// Close closes this end with a FIN.
func (c *Conn) Close() error {
	c.finSent.Store(true)
	return c.tcp.Close()
}

// CloseWrite sends a FIN and goes on reading.
func (c *Conn) CloseWrite() error {
	c.finSent.Store(true)
	return c.tcp.CloseWrite()
}

// Reset closes this end with a RST.
func (c *Conn) Reset() error {
	if err := c.tcp.SetLinger(0); err != nil {
		return err
	}
	return c.tcp.Close()
}
