package reaper

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// Sockets.

// A sockets is the same kernel: the two doors share the name of no method, but read better apart.
type sockets struct{ *kernel }

func (k sockets) each(fn func(c *conn, e *tcp) error) error {
	for _, c := range slices.Clone(k.conns) {
		for _, e := range []*tcp{c.client, c.server} {
			if e.here && e.state != sockdiag.Close {
				if err := fn(c, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (k sockets) socket(e *tcp, info bool) sockdiag.Socket {
	s := sockdiag.Socket{Local: e.local, Remote: e.remote, State: e.state, Cookie: e.cookie, HasInfo: info, Interface: e.device}
	if info {
		s.LastSent, s.LastRecv = k.jiffiesSince(e.sent), k.jiffiesSince(e.got)
		s.LastAck = min(s.LastSent, s.LastRecv)
	}
	return s
}

// jiffiesSince counts ticks of the slowest clock that Linux has (HZ=100).
func (k sockets) jiffiesSince(then ctpolicy.Instant) time.Duration {
	const tick = ctpolicy.Instant(10 * time.Millisecond)
	return time.Duration(k.boot/tick-then/tick) * time.Duration(tick)
}

func (k sockets) LookupOn(local, remote netip.AddrPort, device uint32) (sockdiag.Socket, error) {
	if err := k.call("Lookup"); err != nil {
		return sockdiag.Socket{}, err
	}
	s, err := sockdiag.Socket{}, error(fmt.Errorf("look up socket: %w", sockdiag.ErrNotFound))
	_ = k.each(func(_ *conn, e *tcp) error {
		if e.local == local && e.remote == remote && (e.device == 0 || e.device == device) {
			s, err = k.socket(e, e.state != sockdiag.TimeWait), nil
		}
		return nil
	})
	return s, err
}

func (k sockets) List(q sockdiag.Query, fn func(*sockdiag.Socket) error) error {
	fault := k.call("List")
	err := k.each(func(_ *conn, e *tcp) error {
		s := k.socket(e, q.Info)
		in := func(ranges []sockdiag.PortRange, port uint16) bool {
			return slices.ContainsFunc(ranges, func(r sockdiag.PortRange) bool { return r.First <= port && port <= r.Last })
		}
		if fault != nil || q.States&(1<<e.state) == 0 || !in(q.LocalPorts, e.local.Port()) && !in(q.RemotePorts, e.remote.Port()) {
			return nil
		}
		return fn(&s)
	})
	return cmp.Or(fault, err)
}

func (k sockets) Listeners(fn func(netip.AddrPort) error) error {
	if err := k.call("Listeners"); err != nil {
		return err
	}
	for _, l := range k.listeners {
		if err := fn(l); err != nil {
			return err
		}
	}
	return nil
}

func (k sockets) Destroy(s *sockdiag.Socket) error {
	if err := k.call("Destroy"); err != nil {
		return err
	}
	if s.State == sockdiag.TimeWait || s.State == sockdiag.Listen || s.Cookie == 0 {
		return fmt.Errorf("destroy socket %s: %w", s, sockdiag.ErrRefused)
	}
	err := fmt.Errorf("destroy socket %s: %w", s, sockdiag.ErrNotFound)
	_ = k.each(func(c *conn, e *tcp) error {
		if e.cookie == s.Cookie && e.open() {
			if c.policy == nil || !c.policy.Enforced() {
				k.tb.Errorf("a socket of %s is destroyed, which no policy covers, or one that only reports", c)
			}
			k.changes = append(k.changes, "Destroy")
			c.send(e, rst, "the reaper")
			err = nil
		}
		return nil
	})
	return err
}

// Remote ends.

// Send is for the end at to: an open one shows itself by a packet, a closed one by a reset.
func (k *kernel) Send(from, to netip.AddrPort, _ int) error {
	if err := k.call("Send"); err != nil {
		return err
	}
	if k.sent != nil {
		k.sent(to.String())
	}
	if to == k.unsendable && k.sendFault != nil {
		return k.sendFault
	}
	for _, c := range slices.Backward(k.conns) {
		for _, e := range []*tcp{c.client, c.server} {
			if e.local == to && e.remote == from {
				k.challenged(c, e)
				return nil
			}
		}
	}
	k.tb.Errorf("a challenge to %s as %s, which are no connection", to, from)
	return nil
}

func (k *kernel) challenged(c *conn, e *tcp) {
	if c.policy == nil || !c.policy.Enforced() {
		k.tb.Errorf("a challenge to an end of %s, which no policy covers, or one that only reports", c)
	}
	if e.deaf != 0 {
		e.deaf--
		return
	}
	if e.answered != 0 && k.boot.Sub(e.answered) < 500*time.Millisecond {
		return
	}
	e.answered = k.boot
	talked := c.talked
	if e.open() {
		c.send(e, data, "")
	} else if entry := k.track(c, e, rst); entry != nil {
		k.ruled(c, entry, e) // the other end does not believe a reset with these numbers
		entry.refresh(k, conntrack.StateClose)
	}
	c.talked = talked // it has nothing to say
}

// The table.

func (k *kernel) Beat() error     { k.beats++; return nil }
func (k *kernel) StopBeat() error { return nil }

func (k *kernel) Note(text string) error {
	k.notes = append(k.notes, text)
	return nil
}

func (k *kernel) Closed(from, to netip.AddrPort) (time.Duration, bool, error) {
	if err := k.call("Closed"); err != nil {
		return 0, false, err
	}
	if from == k.unknown {
		return 0, false, errBroken
	}
	at, ok := k.closed[conntrack.Tuple{Src: from, Dst: to}]
	ago := k.boot.Sub(at)
	return ago, ok && ago <= ctpolicy.Window, nil
}

func (k *kernel) Hold(tuples ...conntrack.Tuple) error {
	if err := k.call("Hold"); err != nil {
		return err
	}
	for _, t := range tuples {
		k.held[t] = k.boot.Add(time.Second)
	}
	return nil
}
