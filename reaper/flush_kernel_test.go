package reaper

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
)

// kernelPolicy covers the ports on which these tests listen.
func kernelPolicy() ctpolicy.Policy {
	return ctpolicy.Policy{Name: "t", Ports: []ctpolicy.PortRange{{First: 8081, Last: 8082}}, MaxAge: kernelLimit}
}

// The table is flushed 200 ms before the deadline, at half of it, or again and again. All end on time.
func TestKernelFlush(t *testing.T) {
	for name, flushAt := range map[string][]time.Duration{
		"just before":     {kernelLimit - 200*time.Millisecond},
		"half time":       {kernelLimit / 2},
		"again and again": {kernelLimit / 3, kernelLimit / 2, kernelLimit - 400*time.Millisecond, kernelLimit - 150*time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newTestHost(t, kernelPolicy())
			b.run()
			conns := map[string]*testConn{}
			for _, addr := range []string{"127.0.0.1:8081", "[::1]:8082"} {
				s := b.h.Listen(t, "tcp", addr)
				for _, busy := range []bool{false, true} {
					c := b.connect(s, netnstest.DialOptions{})
					if busy {
						c.client.Busy(10 * time.Millisecond)
						c.server.Busy(10 * time.Millisecond)
					}
					conns[fmt.Sprintf("%s, busy %v", addr, busy)] = &c
				}
			}
			var first time.Time
			for _, c := range conns {
				if first.IsZero() || c.from.Before(first) {
					first = c.from
				}
			}
			for _, at := range flushAt {
				sleepUntil(first.Add(at))
				b.flush()
			}
			for name, c := range conns {
				b.mustEnd(c, name, kernelLimit, kernelLate)
			}
		})
	}
}

// A new connection from the same port, right before or after a flush, lives as long as others.
func TestKernelFlushAndPortReuse(t *testing.T) {
	for _, flush := range []string{"before", "after", "both"} {
		t.Run(flush, func(t *testing.T) {
			t.Parallel()
			b := newTestHost(t, kernelPolicy())
			b.run()
			s := b.h.Listen(t, "tcp", "127.0.0.1:8081")
			old := b.connect(s, netnstest.FromPort(40000))
			sleepUntil(old.from.Add(kernelLimit * 2 / 3))
			if flush != "after" {
				b.flush()
			}
			b.must(old.client.Reset())
			b.must(old.server.WaitEnd(5 * time.Second))
			next := b.connect(s, netnstest.FromPort(40000))
			if flush != "before" {
				b.flush()
			}
			next.client.Busy(10 * time.Millisecond)
			b.mustEnd(&next, "the next one", kernelLimit, 2*b.r.Interval()+kernelLate)
		})
	}
}

// A flow whose client had to dial again, as the rules would mark it, ends at its own limit.
func TestKernelRetried(t *testing.T) {
	b := newTestHost(t, kernelPolicy())
	s := b.h.Listen(t, "tcp", "127.0.0.1:8081")
	c := b.connect(s, netnstest.DialOptions{})
	e, err := b.flows.Get(c.tuple(), 0)
	b.must(err)
	sleepUntil(c.to.Add(kernelLimit / 2)) // for which its client dials in vain
	retried := conntrack.Bits(ctpolicy.LabelRetried)
	b.must(b.flows.Relabel(&e, conntrack.Bits(ctpolicy.LabelRetried, 5), conntrack.Bits(ctpolicy.LabelRetried, 5)))
	began := testConn{client: c.client, server: c.server, from: time.Now()}
	b.must(b.r.Sweep())
	began.to = time.Now()
	now, err := b.flows.Get(c.tuple(), 0)
	b.must(err)
	if now.Same(&e) || now.Start <= e.Start || now.Label != conntrack.Bits(5) || now.Label.And(retried) != (conntrack.Label{}) || !ctpolicy.Open(&now) {
		t.Fatalf("was %+v, is %+v", e, now)
	}
	c.client.Busy(10 * time.Millisecond)
	b.run()
	b.mustEnd(&began, "retried", kernelLimit, kernelLate)
}

// Two packets make an entry that is not assured. The sweep finds it by its socket.
func TestKernelPickedUp(t *testing.T) {
	b := newTestHost(t, kernelPolicy())
	s := b.h.Listen(t, "tcp", "127.0.0.1:8081")
	c := b.connect(s, netnstest.DialOptions{})
	b.must(b.r.Sweep())
	b.must(b.h.Run(t.Context(), "conntrack", "-F"))
	_, err := c.client.Write([]byte("x"))
	b.must(err)
	var e conntrack.Entry
	b.eventually("an entry", func() bool {
		e, err = b.flows.Get(c.tuple(), 0)
		if err != nil && !errors.Is(err, conntrack.ErrGone) {
			t.Fatal(err)
		}
		return err == nil && ctpolicy.PickedUp(&e)
	})
	b.must(b.r.Sweep())
	if e, err = b.flows.Again(&e); err != nil || !ctpolicy.Open(&e) {
		t.Fatalf("%+v, %v", e, err)
	}
	b.run()
	b.mustEnd(&c, "picked up", kernelLimit, kernelLate)
}
