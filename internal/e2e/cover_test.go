package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
	"curfew/reaper/challenge"
	"curfew/rules"
)

// The rules and the sweep must cover the same flows. Random packets in mid-flow go through a gateway with random policies;
// the entry that each one makes has the timeout of the policy that took it, which is compared with what the matcher says of
// this entry.
func TestRulesAndSweepCoverTheSame(t *testing.T) {
	path := netnstest.NewPath(t)
	g := path.Gateway
	if err := g.RouteVia(path.Far.B); err != nil {
		t.Fatal(err)
	}
	tool(t, g, `
		table inet quiet {
			# The first RST would delete the entry that a packet has made.
			chain pre { type filter hook prerouting priority raw; tcp flags rst drop; }
			chain out { type filter hook output priority raw; tcp flags rst drop; }
		}
		table inet translate {
			chain pre { type nat hook prerouting priority dstnat;
				ip daddr 10.9.1.0/24 dnat ip to 10.2.0.2
				ip6 daddr fd09:1::/64 dnat ip6 to fd00:2::2
				ip daddr 10.9.2.0/24 redirect
				ip6 daddr fd09:2::/64 redirect
			}
			chain out { type nat hook output priority -100;
				ip daddr 10.9.1.0/24 dnat ip to 10.2.0.2
				ip daddr 10.9.2.0/24 redirect
			}
			chain post { type nat hook postrouting priority srcnat; oif "link2" masquerade; }
		}`, "nft", "-f", "-")
	rnd := rand.New(rand.NewPCG(3, 3))
	count := map[string]int{}
	for range 60 {
		compareCover(t, path, rnd, randomCover(rnd), count)
		if t.Failed() {
			break
		}
	}
	t.Logf("flows by policy: %v", count)
	for _, name := range []string{"p0", "p1", "p2", "none"} {
		if count[name] < 100 {
			t.Errorf("only %d flows of %s: the test has seen too little", count[name], name)
		}
	}
}

// Ports, addresses and prefixes are few, so that policies hit.
var (
	coverPorts    = []uint16{80, 81, 82, 443, 8080}
	coverPrefixes = []string{
		"0.0.0.0/0", "10.1.0.0/16", "10.1.0.2", "10.2.0.0/24", "10.2.0.2", "10.9.0.0/16", "10.9.1.0/25", "192.0.2.0/24", "10.1.0.1",
		"::/0", "fd00:1::/64", "fd00:1::2", "fd00:2::2", "fd09::/16", "fd09:1::/64", "2001:db8::/32", "fd00:1::1",
	}
	// The gateway's own addresses, others on the way, and such that it translates.
	coverServers = []string{
		"10.1.0.2", "10.2.0.1", "10.2.0.2", "10.2.0.99", "10.9.1.5", "10.9.1.200", "10.9.2.5",
		"fd00:1::2", "fd00:2::1", "fd00:2::2", "fd00:2::99", "fd09:1::5", "fd09:2::5",
	}
	coverClients = []string{"10.1.0.1", "10.1.0.77", "10.1.200.1", "192.0.2.9", "fd00:1::1", "fd00:1::77", "2001:db8::9"}
	coverOwn     = []string{"10.1.0.2", "10.2.0.1", "fd00:1::2", "fd00:2::1"}
)

// coverIdle is the idle limit of a policy, which tells its entries from others.
func coverIdle(i int) time.Duration { return time.Duration(i+1) * 10_000 * time.Second }

func randomCover(rnd *rand.Rand) []ctpolicy.Policy {
	policies := make([]ctpolicy.Policy, 3)
	for i := range policies {
		p := &policies[i]
		*p = ctpolicy.Policy{
			Name: fmt.Sprintf("p%d", i), Idle: coverIdle(i), From: randomPrefixes(rnd), To: randomPrefixes(rnd), Except: randomPrefixes(rnd),
			Direction: []ctpolicy.Direction{ctpolicy.Any, ctpolicy.Inbound, ctpolicy.Outbound, ctpolicy.Forwarded}[rnd.IntN(4)],
		}
	}
	for _, port := range coverPorts[1:] {
		// One policy has the port, or several.
		for _, i := range rnd.Perm(len(policies))[:1+rnd.IntN(len(policies))] {
			p := &policies[i]
			p.Ports = append(p.Ports, ctpolicy.PortRange{First: port, Last: port})
		}
	}
	return slices.DeleteFunc(policies, func(p ctpolicy.Policy) bool { return len(p.Ports) == 0 })
}

// randomPrefixes is none in two of three cases.
func randomPrefixes(rnd *rand.Rand) ctpolicy.Prefixes {
	var list []netip.Prefix
	for range max(0, rnd.IntN(9)-5) {
		p, err := ctpolicy.ParsePrefixes(pick(rnd, coverPrefixes))
		if err != nil {
			panic(err)
		}
		list = append(list, p...)
	}
	return ctpolicy.NewPrefixes(list)
}

func pick[T any](rnd *rand.Rand, list []T) T { return list[rnd.IntN(len(list))] }

// compareCover installs the policies, sends packets and compares.
func compareCover(t *testing.T, path *netnstest.Path, rnd *rand.Rand, policies []ctpolicy.Policy, count map[string]int) {
	t.Helper()
	g := path.Gateway
	do(t, g, func() error {
		return rules.Apply(rules.Config{
			Policies: policies, Defaults: conntrack.DefaultTimeouts(), RegisterSize: 1024, Mark: challenge.Mark,
			Adopting: true, Adopt: time.Hour,
		})
	})
	tool(t, g, "", "conntrack", "-F")
	sent := sendPackets(t, path.Client, rnd, coverClients)
	for tuple := range sendPackets(t, g, rnd, coverOwn) {
		sent[tuple] = true
	}
	own := []netip.Addr{path.Near.B.Addr4, path.Near.B.Addr6, path.Far.A.Addr4, path.Far.A.Addr6}
	matcher := ctpolicy.NewMatcher(policies, func(a netip.Addr) bool { return slices.Contains(own, a) || a.IsLoopback() })
	seen := 0
	do(t, g, func() error {
		dumper, err := conntrack.Open(1 << 20)
		if err != nil {
			return err
		}
		defer dumper.Close()
		return dumper.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
			if !sent[e.Orig] {
				return nil
			}
			seen++
			want := "none"
			if p := matcher.Flow(e); p != nil {
				want = p.Name
			}
			count[want]++
			if labels := matcher.Labels(e); want != "none" && e.Label.And(coverLabels) != labels {
				t.Errorf("%s (answers from %s): the rules give it the labels %x, the sweep %x\npolicies: %+v", e.Orig, e.Reply.Src, e.Label, labels, policies)
			}
			if got := takenBy(e); got != want {
				t.Errorf("%s (answers from %s): the rules say %s, the sweep %s\npolicies: %+v", e.Orig, e.Reply.Src, got, want, policies)
			}
			return nil
		})
	})
	if seen < len(sent)*9/10 {
		t.Errorf("%d of %d packets made an entry", seen, len(sent))
	}
}

// coverLabels are those that follow from a flow and the policies.
var coverLabels = func() (label conntrack.Label) {
	for bit := ctpolicy.LabelMatched; bit <= ctpolicy.LabelInbound; bit++ {
		label.Set(bit)
	}
	label.Set(ctpolicy.LabelCovered)
	return label
}()

// takenBy is the policy whose ct timeout object the entry got.
func takenBy(e *conntrack.Entry) string {
	for i := range 3 {
		if idle := uint32(coverIdle(i) / time.Second); e.Timeout <= idle+1 && e.Timeout > idle-60 {
			return fmt.Sprintf("p%d", i)
		}
	}
	return "none"
}

// sendPackets sends bare ACKs from the host as if from random clients, each from another port.
func sendPackets(t *testing.T, h *netnstest.Host, rnd *rand.Rand, clients []string) map[conntrack.Tuple]bool {
	t.Helper()
	sent := map[conntrack.Tuple]bool{}
	do(t, h, func() error {
		sender, err := challenge.Open(1) // a mark that our rules don't know
		if err != nil {
			return err
		}
		defer sender.Close()
		for port := uint16(20000); port < 20060; port++ {
			client, server := netip.MustParseAddr(pick(rnd, clients)), netip.MustParseAddr(pick(rnd, coverServers))
			if client.Is4() != server.Is4() {
				continue
			}
			tuple := conntrack.Tuple{Src: netip.AddrPortFrom(client, port), Dst: netip.AddrPortFrom(server, pick(rnd, coverPorts))}
			// The first packet gets the timeout object, the second its timeout.
			for range 2 {
				if err := sender.Send(tuple.Src, tuple.Dst, 0); err != nil {
					return err
				}
			}
			sent[tuple] = true
		}
		return nil
	})
	return sent
}

// do runs fn in the host's namespace.
func do(t *testing.T, h *netnstest.Host, fn func() error) {
	t.Helper()
	if err := h.Do(fn); err != nil {
		t.Fatal(err)
	}
}
