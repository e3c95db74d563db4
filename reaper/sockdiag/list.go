package sockdiag

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// Query chooses sockets. The zero Query takes every open connection.
type Query struct {
	// States is a set of states; 0 is all in which a connection can be destroyed: not LISTEN, CLOSE, TIME_WAIT and
	// NEW_SYN_RECV.
	States uint32

	// A socket matches when its local port is in one of LocalPorts or its remote port in one of RemotePorts. When
	// both are empty, every port matches.
	LocalPorts, RemotePorts []PortRange

	// Info asks for tcp_info, which makes answers three times as long.
	Info bool
}

// List calls fn for every TCP socket that the query takes, IPv4 and IPv6. The Socket is reused: fn copies what it
// wants to keep. fn must not use the Conn. Its error ends the list and is returned wrapped.
//
// Sockets come and go while the list is made: one may come twice, and one that was just opened not at all.
func (c *Conn) List(q Query, fn func(*Socket) error) error {
	if q.States == 0 {
		q.States = openStates
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := c.list(family, &q, fn); err != nil {
			return fmt.Errorf("list TCP sockets: %w", err)
		}
	}
	return nil
}

// Listeners calls fn with the local address of every listening socket. Addresses may repeat (SO_REUSEPORT), and [::]
// usually stands for IPv4 too. fn's error ends the list and is returned wrapped.
func (c *Conn) Listeners(fn func(local netip.AddrPort) error) error {
	return c.List(Query{States: States(Listen)}, func(s *Socket) error { return fn(s.Local) })
}

func (c *Conn) list(family uint8, q *Query, fn func(*Socket) error) error {
	req, err := appendList(c.req[:0], family, q)
	if err != nil {
		return err
	}
	c.req = req
	var s Socket
	return c.nl.Dump(req, func(_ uint16, payload []byte) error {
		if err := decode(payload, &s); err != nil {
			return err
		}
		if !q.match(&s) {
			return nil
		}
		return fn(&s)
	})
}

// match does again what the kernel did: it has not the same states, and may have been given no port filter.
func (q *Query) match(s *Socket) bool {
	if !s.State.in(q.States) {
		return false
	}
	if len(q.LocalPorts)+len(q.RemotePorts) == 0 {
		return true
	}
	return containsPort(q.LocalPorts, s.Local.Port()) || containsPort(q.RemotePorts, s.Remote.Port())
}

func appendList(b []byte, family uint8, q *Query) ([]byte, error) {
	var ext uint8
	if q.Info {
		ext = extInfo
	}
	states := q.States
	if TimeWait.in(states) {
		states |= States(FinWait2) // see miniState
	}
	if NewSynRecv.in(states) {
		states |= States(SynRecv)
	}
	b = appendRequest(b, sockDiagByFamily, family, ext, states, new([idSize]byte))
	code := compile(q.LocalPorts, q.RemotePorts)
	if len(code) == 0 {
		return b, nil
	}
	return nl.AppendAttr(b, attrReqBytecode, code)
}
