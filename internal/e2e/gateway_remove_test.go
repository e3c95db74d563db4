package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

// TestGatewayRemove releases pinned connections with their address translation. They go on without a limit, whatever they do
// meanwhile.
func TestGatewayRemove(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	streams := open(t, g.routes, "opened before", traffics...)
	before := entries(t, g.Gateway, everything, 8100, 8104)
	succeed(t, g.Gateway, "apply", "--port", natPorts, "--max-age", "1h")
	if n := len(entries(t, g.Gateway, fixed, 8100, 8104)); n != len(streams) {
		t.Fatalf("%d of %d connections are pinned", n, len(streams))
	}
	out := succeed(t, g.Gateway, "remove")
	if want := fmt.Sprintf("removed; %d pinned connections released\n", len(streams)); out != want {
		t.Errorf("remove says %q, want %q", out, want)
	}
	g.mustBeReleased(t, before)
	time.Sleep(2 * time.Second)
	mustGoOn(t, streams)
}

// mustBeReleased compares entries with those of before.
func (g *gateway) mustBeReleased(t *testing.T, before []conntrack.Entry) {
	t.Helper()
	was := map[conntrack.Tuple]conntrack.Entry{}
	for _, e := range before {
		was[e.Orig] = e
	}
	now := entries(t, g.Gateway, everything, 8100, 8104)
	for _, e := range now {
		if e.Reply != was[e.Orig].Reply || (e.Status^was[e.Orig].Status)&conntrack.StatusNAT != 0 {
			t.Errorf("%s: the answer comes from %s, it came from %s", e.Orig, e.Reply, was[e.Orig].Reply)
		}
		if e.Status&conntrack.StatusFixedTimeout != 0 {
			t.Errorf("%s is still pinned", e.Orig)
		}
	}
	if len(now) != len(before) {
		t.Errorf("%d entries, there were %d", len(now), len(before))
	}
	if labelled(now) != 0 {
		t.Error("labels are left")
	}
}

// TestGatewayExistingReset ends what is open at once, also what is pinned for later.
func TestGatewayExistingReset(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	long := []string{"--port", natPorts, "--max-age", "1h"}
	succeed(t, g.Gateway, append([]string{"apply"}, long...)...)
	pinned := open(t, g.routes, "pinned", traffics...)
	succeed(t, g.Gateway, append([]string{"apply"}, long...)...)
	others := open(t, g.routes, "not pinned", traffics...)
	from := time.Now()
	reaper := start(t, g.Gateway, append(long, "--existing", "reset")...)
	for _, s := range append(pinned, others...) {
		s.born = span{from, time.Now()}
		s.mustEnd(t, 0)
		s.mustBeReset(t)
	}
	younger := open(t, g.routes, "younger", traffics[0])
	mustGoOn(t, younger)
	reaper.stop()
}

// TestGatewayZones has connections whose packets are tracked in a zone of their own, in one direction or in both.
func TestGatewayZones(t *testing.T) {
	t.Parallel()
	g := newRouter(t)
	tool(t, g.Gateway, `
		table inet zones {
			chain pre {
				type filter hook prerouting priority raw;
				tcp dport 8201 ct zone set 7
				tcp sport 8201 ct zone set 7
				tcp dport 8202 ct original zone set 8
				tcp sport 8203 ct reply zone set 9
				tcp dport 8203 ct reply zone set 9
			}
		}`, "nft", "-f", "-")
	routes := []*route{g.plain(t, 8200), g.plain(t, 8201), g.plain(t, 8202), g.plain(t, 8203)}
	start(t, g.Gateway, "--port", "8200-8203", "--max-age", limit.String())
	streams := open(t, routes, "opened after", traffics...)
	zones := map[string]bool{}
	for _, e := range entries(t, g.Gateway, everything, 8200, 8203) {
		zones[fmt.Sprint(e.Zone, " ", e.ReplyZone)] = true
	}
	if len(zones) != 4 {
		t.Errorf("zones are %v", zones)
	}
	mustAllEndWhole(t, limit, streams)
}

// TestGatewayReap ends overdue connections in one pass, idle ones too, and reports each end.
func TestGatewayReap(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	succeed(t, g.Gateway, "apply", "--port", natPorts, "--max-age", "2s")
	streams := open(t, g.routes, "opened after", traffics[3])
	sleepUntil(streams[len(streams)-1].born.to.Add(2500 * time.Millisecond))
	r := curfew(t, g.Gateway, "reap")
	if want := fmt.Sprintf("%d ended, 0 survived, 0 adopted\n", len(streams)); r.code != 0 || r.stdout != want {
		t.Errorf("reap: %d, %q, want %q\n%s", r.code, r.stdout, want, r.stderr)
	}
	if n := strings.Count(r.stderr, "method=rule client=rule server=rule"); n != len(streams) {
		t.Errorf("%d of %d connections are said to have ended by the rule at both ends:\n%s", n, len(streams), r.stderr)
	}
	for _, s := range streams {
		if err := s.client.WaitEnd(late); err != nil {
			t.Error(err)
		}
		if err := s.server.WaitEnd(late); err != nil {
			t.Error(err)
		}
	}
}
