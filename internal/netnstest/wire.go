package netnstest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
)

// End is one host's side of a wire.
type End struct {
	Dev          string
	Addr4, Addr6 netip.Addr
}

// Wire is a veth pair between two hosts.
type Wire struct{ A, B End }

// Join wires a and b together. n, from 1 to 255, names the wire and picks its addresses: a is 10.n.0.1/24 and
// fd00:n::1/64 (n in hexadecimal), b has 2 for 1, and the device is link<n> on both. It needs the ip command.
func Join(a, b *Host, n int) (Wire, error) {
	w := Wire{A: newEnd(n, 1), B: newEnd(n, 2)}
	if err := addPair(a, w.A.Dev, b, w.B.Dev); err != nil {
		return Wire{}, fmt.Errorf("join %s and %s: %w", a.name, b.name, err)
	}
	if err := a.plug(w.A); err != nil {
		return Wire{}, err
	}
	return w, b.plug(w.B)
}

func newEnd(n int, host byte) End {
	return End{
		Dev:   fmt.Sprintf("link%d", n),
		Addr4: netip.AddrFrom4([4]byte{10, byte(n), 0, host}),
		Addr6: netip.AddrFrom16([16]byte{0: 0xfd, 3: byte(n), 15: host}),
	}
}

// addPair makes the veth pair in a's namespace with the peer in b's, which ip finds as its file descriptor 3.
func addPair(a *Host, devA string, b *Host, devB string) error {
	cmd := exec.Command("ip", "link", "add", devA, "type", "veth", "peer", "name", devB, "netns", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{b.ns}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := a.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("add veth pair %s: %w: %s", devA, err, strings.TrimSpace(out.String()))
	}
	return nil
}

// plug sets the device up and gives it its addresses. Without duplicate address detection, and with the addresses added
// after it is up, a neighbour answers at once; else the first IPv6 packets wait for 1 to 2 s.
func (h *Host) plug(e End) error {
	if err := h.SetSysctl("net.ipv6.conf."+e.Dev+".accept_dad", "0"); err != nil {
		return err
	}
	batch := fmt.Sprintf("link set %s up\naddr add %s/24 dev %s\naddr add %s/64 dev %s nodad\n",
		e.Dev, e.Addr4, e.Dev, e.Addr6, e.Dev)
	if _, err := h.Pipe(context.Background(), batch, "ip", "-batch", "-"); err != nil {
		return fmt.Errorf("set up %s of %s: %w", e.Dev, h.name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = append(h.ends, e)
	return nil
}

// RouteVia makes the other side of a wire the default gateway, for IPv4 and IPv6.
func (h *Host) RouteVia(gateway End) error {
	for family, addr := range map[string]netip.Addr{"-4": gateway.Addr4, "-6": gateway.Addr6} {
		if err := h.Run(context.Background(), "ip", family, "route", "add", "default", "via", addr.String()); err != nil {
			return fmt.Errorf("route %s via %s: %w", h.name, addr, err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gateway = gateway
	return nil
}

// Forward makes the host a router, for IPv4 and IPv6.
func (h *Host) Forward() error {
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := h.SetSysctl(name, "1"); err != nil {
			return err
		}
	}
	return nil
}

// Path is a client that reaches a server through a gateway.
type Path struct {
	Client, Gateway, Server *Host
	Near, Far               Wire // client (A) to gateway (B), gateway (A) to server (B)
}

// OpenPath makes the three hosts and their two wires, 10.1.0.0/24 and 10.2.0.0/24. Close releases them.
func OpenPath() (*Path, error) {
	p := &Path{}
	if err := p.build(); err != nil {
		p.Close()
		return nil, fmt.Errorf("open path: %w", err)
	}
	return p, nil
}

func (p *Path) build() (err error) {
	if p.Client, err = OpenHost("client"); err != nil {
		return err
	}
	if p.Gateway, err = OpenHost("gateway"); err != nil {
		return err
	}
	if p.Server, err = OpenHost("server"); err != nil {
		return err
	}
	if p.Near, err = Join(p.Client, p.Gateway, 1); err != nil {
		return err
	}
	if p.Far, err = Join(p.Gateway, p.Server, 2); err != nil {
		return err
	}
	if err = p.Gateway.Forward(); err != nil {
		return err
	}
	if err = p.Client.RouteVia(p.Near.B); err != nil {
		return err
	}
	return p.Server.RouteVia(p.Far.A)
}

// Close closes the three hosts.
func (p *Path) Close() {
	for _, h := range []*Host{p.Client, p.Gateway, p.Server} {
		if h != nil {
			h.Close()
		}
	}
}
