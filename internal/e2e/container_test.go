package e2e

import (
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// dockerRules are what Docker installs for a network of containers on br4, one of which, the second, publishes its
// port 80 as 8081. The last rule is for packets that go back to where they came from; with br_netfilter they don't need it.
func dockerRules(published netnstest.End) string {
	return strings.NewReplacer("PUBLISHED4", published.Addr4.String(), "PUBLISHED6", published.Addr6.String()).Replace(`
table inet docker {
	chain published {
		meta nfproto ipv4 tcp dport 8081 dnat ip to PUBLISHED4:80
		meta nfproto ipv6 tcp dport 8081 dnat ip6 to [PUBLISHED6]:80
	}
	chain prerouting {
		type nat hook prerouting priority dstnat;
		fib daddr type local jump published
	}
	chain output {
		type nat hook output priority -100;
		fib daddr type local jump published
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr 10.4.0.0/24 oifname != "br4" masquerade
		ip6 saddr fd00:4::/64 oifname != "br4" masquerade
		iifname "br4" oifname "br4" ct status dnat masquerade
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "br4" accept
		oifname "br4" ip daddr PUBLISHED4 tcp dport 80 accept
		oifname "br4" ip6 daddr PUBLISHED6 tcp dport 80 accept
	}
}
`)
}

// containers are a host with two of them, and another host outside.
func containers(t *testing.T, bridgeFilter bool) (host *netnstest.Host, routes []*route) {
	t.Helper()
	host, outside := netnstest.NewHost(t, "host"), netnstest.NewHost(t, "outside")
	first, second := netnstest.NewHost(t, "first"), netnstest.NewHost(t, "second")
	uplink := netnstest.Link(t, host, outside, 2)
	bridge := netnstest.NewBridge(t, host, 4)
	bridge.Join(t, first)
	published := bridge.Join(t, second)
	if err := host.Forward(); err != nil {
		t.Fatal(err)
	}
	tool(t, host, dockerRules(published), "nft", "-f", "-")
	web, far := listen(t, second, 80), listen(t, outside, 8082)
	routes = []*route{
		{name: "outside to a published port", client: outside, to: uplink.A, port: 8081, servers: web},
		{name: "container to another's published port", client: first, to: uplink.A, port: 8081, servers: web, source: !bridgeFilter},
		{name: "host to a published port", client: host, to: uplink.A, port: 8081, servers: web, local: true},
		{name: "host to a container", client: host, to: published, port: 80, servers: web, local: true},
		{name: "container to outside", client: first, to: uplink.B, port: 8082, servers: far, source: true},
	}
	if filterBridges(t, host, bridgeFilter) && bridgeFilter {
		return host, append(routes,
			&route{name: "container to container", client: first, to: published, port: 80, servers: web})
	}
	return host, append(routes,
		&route{name: "container to its own published port", client: second, to: uplink.A, port: 8081, servers: web, source: true})
}

// mustEndContainers has all kinds of connections of containers. Curfew runs on their host.
func mustEndContainers(t *testing.T, host *netnstest.Host, routes []*route) {
	t.Helper()
	before := open(t, routes, "opened before", traffics...)
	from := time.Now()
	reaper := start(t, host, "--port", "80,8081,8082", "--max-age", limit.String())
	for _, s := range before {
		s.born = span{from, time.Now()}
	}
	after := open(t, routes, "opened after", traffics...)
	mustAllEndWhole(t, limit, before, after)
	reaper.stop()
}

func TestContainers(t *testing.T) {
	t.Parallel()
	host, routes := containers(t, false)
	mustEndContainers(t, host, routes)
}

// TestContainersOnFilteredBridge is for the module br_netfilter, which Docker loads: netfilter also sees the packets
// that pass from one container to another.
func TestContainersOnFilteredBridge(t *testing.T) {
	t.Parallel()
	if h := netnstest.NewHost(t, "any"); !filterBridges(t, h, true) {
		t.Log("this kernel has no br_netfilter: nothing to see")
		return
	}
	host, routes := containers(t, true)
	mustEndContainers(t, host, routes)
}
