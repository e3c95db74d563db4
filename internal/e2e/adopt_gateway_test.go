package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

const (
	adoptPort = 8081
	// adoptFor is the window in which a gateway takes unknown connections for its own.
	adoptFor = 2 * time.Second
)

var adoptFlags = []string{"--port", fmt.Sprint(adoptPort), "--max-age", limit.String(), "--adopt", adoptFor.String()}

// mustTrackNothing checks that the gateway does not know any connection.
func (g *gateway) mustTrackNothing(t *testing.T) {
	t.Helper()
	if list := tool(t, g.Gateway, "", "conntrack", "-L"); strings.TrimSpace(list) != "" {
		t.Fatalf("the gateway tracks connections:\n%s", list)
	}
}

// tracks tells whether the gateway knows a connection.
func (g *gateway) tracks(t *testing.T, p *pair) bool {
	t.Helper()
	family := "ipv4"
	if p.client.LocalAddr().Addr().Is6() {
		family = "ipv6"
	}
	list := tool(t, g.Gateway, "", "conntrack", "-L", "-f", family)
	return strings.Contains(list, fmt.Sprintf("sport=%d ", p.client.LocalAddr().Port()))
}

// An unknown connection has been open before the gateway tracked anything.
type unknown struct {
	*stream
	first *netnstest.Conn // that sends first
}

// openUnknown opens connections of both families, for each end that may send first.
func openUnknown(t *testing.T, r *route, name string) (list []*unknown) {
	t.Helper()
	for i, s := range open(t, []*route{r, r}, name, silentTraffics[0]) {
		u := &unknown{s, s.client}
		if i%2 == 1 {
			u.first = s.server
		}
		u.name += fmt.Sprintf(", %s -> %s sends first", u.first.LocalAddr(), u.first.RemoteAddr())
		list = append(list, u)
	}
	return list
}

// other is the end that does not send.
func (u *unknown) other() *netnstest.Conn {
	if u.first == u.client {
		return u.server
	}
	return u.client
}

// TestGatewayAdoptsAtFirstPacket begins to limit on a gateway that has tracked nothing. The first packet tells it of a
// connection, and the limit counts from then.
func TestGatewayAdoptsAtFirstPacket(t *testing.T) {
	t.Parallel()
	g := newRouter(t)
	r := g.plain(t, adoptPort)
	talking := openUnknown(t, r, "talks")
	silent := openUnknown(t, r, "silent")
	tooLate := openUnknown(t, r, "talks too late")
	g.mustTrackNothing(t)

	start(t, g.Gateway, adoptFlags...)
	running := time.Now()
	sleepUntil(running.Add(adoptFor / 4))
	for _, u := range talking {
		u.talk(t, u.first, u.other())
		if !g.tracks(t, u.pair) {
			t.Errorf("%s: it is not known after its first packet", u.name)
		}
	}
	sleepUntil(running.Add(adoptFor + early))
	for _, u := range tooLate {
		u.mustBeAlive(t, "without a packet")
		mustAnswerStray(t, u)
	}
	sleepUntil(talking[0].born.from.Add(limit - early))
	for _, u := range talking {
		u.mustBeAlive(t, "before the limit")
	}
	for _, u := range talking {
		u.mustEnd(t, limit)
		u.mustBeReset(t)
	}
	for _, u := range silent {
		u.mustBeAlive(t, "although nobody can know of it")
		if g.tracks(t, u.pair) {
			t.Errorf("%s: it is known without a packet", u.name)
		}
	}
}

// mustAnswerStray sends a packet of a connection that is not known, and too late.
func mustAnswerStray(t *testing.T, u *unknown) {
	t.Helper()
	if err := u.first.Send(1); err != nil {
		t.Errorf("%s: send: %v", u.name, err)
	}
	if err := u.first.WaitEnd(late); err != nil {
		t.Errorf("%s: its packet after the window is not answered: %v", u.name, err)
		return
	}
	u.mustBeResetAt(t, "first", u.first)
}

// TestGatewayKeepsTrueAge has a gateway that knew the connections, and since when.
func TestGatewayKeepsTrueAge(t *testing.T) {
	t.Parallel()
	g := newRouter(t)
	r := g.plain(t, adoptPort)
	tool(t, g.Gateway, "add table inet site\nadd chain inet site any { type filter hook forward priority 0; }\n"+
		"add rule inet site any ct state established accept\n", "nft", "-f", "-")
	if err := g.Gateway.SetSysctl("net.netfilter.nf_conntrack_timestamp", "1"); err != nil {
		t.Fatal(err)
	}
	streams := open(t, []*route{r}, "its birth is known", traffics...)
	sleepUntil(streams[0].born.from.Add(limit / 2))
	start(t, g.Gateway, "--port", fmt.Sprint(adoptPort), "--max-age", limit.String())
	mustAllEndWhole(t, limit, streams)
}
