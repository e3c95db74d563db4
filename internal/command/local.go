package command

import (
	"net"
	"net/netip"
	"time"
)

// localFor is how long a list of this host's addresses is used.
const localFor = time.Second

// A local knows this host's own addresses. It is not safe for concurrent use.
type local struct {
	addresses map[netip.Addr]bool
	read      time.Time
}

// has tells whether an address is this host's own.
func (l *local) has(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	if time.Since(l.read) > localFor {
		l.refresh()
	}
	return l.addresses[a]
}

// refresh keeps the old list when there is no new one.
func (l *local) refresh() {
	l.read = time.Now()
	list, err := net.InterfaceAddrs()
	if err != nil {
		return
	}
	l.addresses = make(map[netip.Addr]bool, len(list))
	for _, address := range list {
		if prefix, ok := address.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(prefix.IP); ok {
				l.addresses[a.Unmap()] = true
			}
		}
	}
}
