package sockdiag

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Lookup finds the socket of a connection by its exact addresses, with tcp_info. IPv4 addresses, mapped or not, find
// dual-stack sockets too. It is ErrNotFound when there is none: the kernel then answers with nothing, or with a listener
// on the local port.
//
// For link-local addresses the zone, a name or an index, tells the link. Without one all connections are searched, and
// the result may be ErrAmbiguous. A socket that is bound to a device for another reason is not found: List finds it, and
// LookupOn.
func (c *Conn) Lookup(local, remote netip.AddrPort) (Socket, error) {
	return c.LookupOn(local, remote, 0)
}

// LookupOn is Lookup for a socket that is bound to a device (SO_BINDTODEVICE, or a VRF), by the device's index. One that
// is not bound is found too. 0 is Lookup.
func (c *Conn) LookupOn(local, remote netip.AddrPort, ifindex uint32) (Socket, error) {
	s, err := c.lookup(unmap(local), unmap(remote), ifindex)
	if err != nil {
		return Socket{}, fmt.Errorf("look up socket %s -> %s: %w", local, remote, err)
	}
	return s, nil
}

func (c *Conn) lookup(local, remote netip.AddrPort, ifindex uint32) (Socket, error) {
	family := familyOf(local.Addr())
	if family == 0 || family != familyOf(remote.Addr()) {
		return Socket{}, fmt.Errorf("%w: addresses of different families", ErrNotFound)
	}
	if ifindex == 0 {
		var err error
		if ifindex, err = zoneIndex(local.Addr(), remote.Addr()); err != nil {
			return Socket{}, err
		}
	}
	local, remote = withoutZone(local), withoutZone(remote)
	if ifindex == 0 && linkLocal(local, remote) {
		return c.search(local, remote)
	}
	return c.exact(family, local, remote, ifindex)
}

// exact makes one look-up in the kernel's hash table (inet_diag_find_one_icsk).
func (c *Conn) exact(family uint8, local, remote netip.AddrPort, ifindex uint32) (Socket, error) {
	var s Socket
	id := newID(local, remote, ifindex)
	c.req = appendRequest(c.req[:0], sockDiagByFamily, family, extInfo, 0, &id)
	err := c.nl.Request(c.req, func(_ uint16, payload []byte) error { return decode(payload, &s) })
	if errors.Is(err, unix.ENOENT) {
		return Socket{}, ErrNotFound
	}
	if err == nil && (s.State == Listen || s.Local != local || s.Remote != remote) {
		return Socket{}, ErrNotFound
	}
	return s, err
}

// search goes through all IPv6 sockets with these ports.
func (c *Conn) search(local, remote netip.AddrPort) (Socket, error) {
	var found Socket
	id := newID(local, remote, 0)
	all := ^States(Listen)
	c.req = appendRequest(c.req[:0], sockDiagByFamily, unix.AF_INET6, extInfo, all, &id)
	var s Socket
	err := c.nl.Dump(c.req, func(_ uint16, payload []byte) error {
		if err := decode(payload, &s); err != nil {
			return err
		}
		switch {
		case s.State == Listen || s.Local != local || s.Remote != remote:
		case found.Cookie == 0:
			found = s
		case found.Cookie != s.Cookie:
			return ErrAmbiguous
		}
		return nil
	})
	if err == nil && found.Cookie == 0 {
		err = ErrNotFound
	}
	return found, err
}

// zoneIndex is the interface that one of the addresses names, or 0.
func zoneIndex(addrs ...netip.Addr) (uint32, error) {
	for _, a := range addrs {
		if a.Zone() == "" {
			continue
		}
		if n, err := strconv.ParseUint(a.Zone(), 10, 32); err == nil {
			return uint32(n), nil
		}
		link, err := net.InterfaceByName(a.Zone())
		if err != nil {
			return 0, fmt.Errorf("find interface %s: %w", a.Zone(), err)
		}
		return uint32(link.Index), nil
	}
	return 0, nil
}

func linkLocal(addrs ...netip.AddrPort) bool {
	for _, a := range addrs {
		if a.Addr().Is6() && a.Addr().IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

func familyOf(a netip.Addr) uint8 {
	switch {
	case a.Is4():
		return unix.AF_INET
	case a.Is6():
		return unix.AF_INET6
	}
	return 0
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func withoutZone(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}
