package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// An echo sends numbered datagrams, and counts what comes back.
type echo struct {
	name           string
	conn           net.Conn
	sent, received atomic.Int64
	stop, stopped  chan struct{}
}

// echoServer answers datagrams on a port, IPv4 and IPv6.
func echoServer(t *testing.T, h *netnstest.Host, port uint16) {
	t.Helper()
	var conn net.PacketConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", fmt.Sprintf("[::]:%d", port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
}

// startEcho sends a datagram each pace until finish.
func startEcho(t *testing.T, h *netnstest.Host, to netip.AddrPort) *echo {
	t.Helper()
	e := &echo{name: "UDP to " + to.String(), stop: make(chan struct{}), stopped: make(chan struct{})}
	err := h.Do(func() (err error) {
		e.conn, err = net.Dial("udp", to.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.conn.Close() })
	go e.send()
	go e.receive()
	return e
}

func (e *echo) send() {
	defer close(e.stopped)
	tick := time.NewTicker(pace / 4)
	defer tick.Stop()
	for n := int64(0); ; n++ {
		if _, err := fmt.Fprint(e.conn, n); err != nil {
			return
		}
		e.sent.Add(1)
		select {
		case <-tick.C:
		case <-e.stop:
			return
		}
	}
}

// receive counts answers that come in order.
func (e *echo) receive() {
	b := make([]byte, 64)
	for {
		n, err := e.conn.Read(b)
		if err != nil {
			return
		}
		if string(b[:n]) == fmt.Sprint(e.received.Load()) {
			e.received.Add(1)
		}
	}
}

// finish stops, and checks that all have come back.
func (e *echo) finish(t *testing.T) {
	t.Helper()
	close(e.stop)
	<-e.stopped
	sent := e.sent.Load()
	for deadline := time.Now().Add(patience); e.received.Load() < sent && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := e.received.Load(); got != sent || sent < 10 {
		t.Errorf("%s: %d of %d came back", e.name, got, sent)
	}
}

// A pinger is a running ping.
type pinger struct {
	name string
	out  output
	done chan struct{}
}

// startPing sends a number of ICMP echo requests, one each pace/4.
func startPing(t *testing.T, h *netnstest.Host, to netip.Addr, count int) *pinger {
	t.Helper()
	p := &pinger{name: "ping " + to.String(), done: make(chan struct{})}
	cmd := exec.Command("ping", "-q", "-c", fmt.Sprint(count), "-i", fmt.Sprint((pace / 4).Seconds()), to.String())
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return p
}

// finish waits for it, and checks that all have come back.
func (p *pinger) finish(t *testing.T, count int) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
	}
	if want := fmt.Sprintf("%d packets transmitted, %d received,", count, count); !strings.Contains(p.out.String(), want) {
		t.Errorf("%s: want %q:\n%s", p.name, want, p.out.String())
	}
}
