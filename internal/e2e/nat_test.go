package e2e

import (
	"net/netip"
	"strings"
)

// A nat is what the gateway does to the connections that a client opens to a port.
type nat struct {
	name       string
	port       uint16 // as the client dials it, and as the limit covers it
	serverPort uint16
	toGateway  bool // the client dials the gateway's address
	source     bool // the server sees the gateway's address, and another port
}

var nats = []nat{
	{name: "plain", port: 8100, serverPort: 8100},
	{name: "DNAT", port: 8101, serverPort: 9101, toGateway: true},
	{name: "SNAT", port: 8102, serverPort: 8102, source: true},
	{name: "masquerade", port: 8103, serverPort: 8103, source: true},
	{name: "DNAT and masquerade", port: 8104, serverPort: 9104, toGateway: true, source: true},
}

// natPorts are the ports of all kinds, for --port.
const natPorts = "8100-8104"

// natRules are the gateway's own rules, in its own table. Translated ports are not in the range of the clients' ports.
func natRules(server4, server6, source4, source6 netip.Addr) string {
	return strings.NewReplacer("SERVER4", server4.String(), "SERVER6", server6.String(),
		"SOURCE4", source4.String(), "SOURCE6", source6.String()).Replace(`
table inet site {
	chain destinations {
		type nat hook prerouting priority dstnat;
		iifname "link1" meta nfproto ipv4 tcp dport 8101 dnat ip to SERVER4:9101
		iifname "link1" meta nfproto ipv6 tcp dport 8101 dnat ip6 to [SERVER6]:9101
		iifname "link1" meta nfproto ipv4 tcp dport 8104 dnat ip to SERVER4:9104
		iifname "link1" meta nfproto ipv6 tcp dport 8104 dnat ip6 to [SERVER6]:9104
	}
	chain sources {
		type nat hook postrouting priority srcnat;
		oifname "link2" meta nfproto ipv4 tcp dport 8102 snat ip to SOURCE4:20000-20999
		oifname "link2" meta nfproto ipv6 tcp dport 8102 snat ip6 to [SOURCE6]:20000-20999
		oifname "link2" tcp dport 8103 masquerade to :21000-21999
		oifname "link2" tcp dport 9104 masquerade to :22000-22999
	}
	chain through {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ct state invalid drop
		meta l4proto { icmp, ipv6-icmp, udp } accept
		tcp dport { 8000-9999 } accept
	}
}
`)
}
