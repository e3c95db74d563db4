package netnstest

import (
	"fmt"
	"sync"
)

// A Bridge is a switch on a host, which has an address on it, such as Docker makes for its containers.
type Bridge struct {
	Host *Host
	End  // the host's own: device br<n>, 10.n.0.1/24 and fd00:n::1/64

	n     int
	mu    sync.Mutex
	ports int
}

// AddBridge makes a bridge. n is as for Join, and stands for the same addresses.
func (h *Host) AddBridge(n int) (*Bridge, error) {
	b := &Bridge{Host: h, End: newEnd(n, 1), n: n}
	b.Dev = fmt.Sprintf("br%d", n)
	if err := h.ip("link add "+b.Dev+" type bridge forward_delay 0", "link set "+b.Dev+" type bridge mcast_snooping 0"); err != nil {
		return nil, err
	}
	return b, h.plug(b.End)
}

// Attach plugs a host into the bridge, its default gateway from then on. The first gets 10.n.0.2 and fd00:n::2, the next
// 3; its device is link<n>, the bridge's port br<n>p<last number>.
func (b *Bridge) Attach(c *Host) (End, error) {
	b.mu.Lock()
	b.ports++
	number := byte(1 + b.ports)
	b.mu.Unlock()
	end, port := newEnd(b.n, number), fmt.Sprintf("%sp%d", b.Dev, number)
	if err := addPair(b.Host, port, c, end.Dev); err != nil {
		return End{}, fmt.Errorf("attach %s to %s: %w", c.name, b.Dev, err)
	}
	if err := b.Host.ip("link set "+port+" master "+b.Dev, "link set "+port+" up"); err != nil {
		return End{}, err
	}
	if err := c.plug(end); err != nil {
		return End{}, err
	}
	return end, c.RouteVia(b.End)
}
