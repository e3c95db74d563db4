package e2e

import (
	"errors"
	"os"
	"testing"

	"curfew/internal/netnstest"
)

// TestHairpin has both ends in one network behind the gateway. The client dials the gateway's address there.
func TestHairpin(t *testing.T) {
	t.Parallel()
	router, client, server := netnstest.NewHost(t, "router"), netnstest.NewHost(t, "client"), netnstest.NewHost(t, "server")
	inside := netnstest.NewBridge(t, router, 5)
	inside.Join(t, client)
	inside.Join(t, server)
	if err := router.Forward(); err != nil {
		t.Fatal(err)
	}
	filterBridges(t, router, false)
	tool(t, router, `
table inet site {
	chain destinations {
		type nat hook prerouting priority dstnat;
		meta nfproto ipv4 tcp dport 8081 dnat ip to `+server.Addr4().String()+`:9081
		meta nfproto ipv6 tcp dport 8081 dnat ip6 to [`+server.Addr6().String()+`]:9081
	}
	chain sources {
		type nat hook postrouting priority srcnat;
		iifname "br5" oifname "br5" ct status dnat masquerade
	}
}
`, "nft", "-f", "-")
	start(t, router, "--port", "8081", "--max-age", limit.String())
	hairpin := &route{name: "hairpin", client: client, to: inside.End, port: 8081, servers: listen(t, server, 9081), source: true}
	streams := open(t, []*route{hairpin}, "both inside", traffics...)
	for _, s := range streams {
		if got, want := s.server.RemoteAddr().Addr(), inside.End; got != want.Addr4 && got != want.Addr6 {
			t.Fatalf("%s: the server sees %s, want the gateway", s.name, got)
		}
	}
	mustAllEndWhole(t, limit, streams)
}

// filterBridges says whether netfilter sees packets that only pass a bridge, as Docker wants it. It answers false when
// the kernel can't do that, or has not loaded the module br_netfilter.
func filterBridges(t *testing.T, h *netnstest.Host, on bool) bool {
	t.Helper()
	value := "0"
	if on {
		value = "1"
	}
	for _, name := range []string{"net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"} {
		err := h.SetSysctl(name, value)
		if errors.Is(err, os.ErrNotExist) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return true
}
