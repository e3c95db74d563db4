package netnstest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// LinkDown sets a device down. Nothing tells the connections.
func (h *Host) LinkDown(dev string) error {
	if err := h.SetSysctl("net/ipv6/conf/"+dev+"/keep_addr_on_down", "1"); err != nil {
		return err
	}
	return h.ip("link set " + dev + " down")
}

// LinkUp sets it up again, and restores the default route, which goes with its device.
func (h *Host) LinkUp(dev string) error {
	batch := []string{"link set " + dev + " up"}
	h.mu.Lock()
	gateway := h.gateway
	h.mu.Unlock()
	if gateway != (End{}) {
		for _, addr := range []netip.Addr{gateway.Addr4, gateway.Addr6} {
			batch = append(batch, "route replace default via "+addr.String())
		}
	}
	return h.ip(batch...)
}

// AddAddr gives a device one more address, such as 10.1.0.9/24. Programs use it only when told.
func (h *Host) AddAddr(dev string, prefix netip.Prefix) error {
	line := fmt.Sprintf("addr add %s dev %s", prefix, dev)
	if prefix.Addr().Is6() {
		line += " nodad preferred_lft 0"
	}
	return h.ip(line)
}

// ip runs commands of the program ip.
func (h *Host) ip(commands ...string) error {
	if _, err := h.Pipe(context.Background(), strings.Join(commands, "\n")+"\n", "ip", "-batch", "-"); err != nil {
		return fmt.Errorf("%s: %s: %w", h.name, strings.Join(commands, "; "), err)
	}
	return nil
}
