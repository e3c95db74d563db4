package e2e

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
)

// openSome opens connections to an IPv4 server.
func (l *limitedPort) openSome(t *testing.T, count int) (pairs []*pair) {
	t.Helper()
	for range count {
		pairs = append(pairs, connect(t, l.top.client, l.v4, l.top.address4, netnstest.DialOptions{}))
	}
	return pairs
}

// TestJitter opens connections together, which end apart: each at the age that its addresses and ports give it, also when
// another reaper takes over.
func TestJitter(t *testing.T) {
	t.Parallel()
	const count = 1000
	policy := ctpolicy.Policy{MaxAge: limit, Jitter: 100}
	top := topologies(t)["server here"](t)
	port := top.listenOn(t, 8081)
	flags := []string{"--port", "8081", "--max-age", limit.String(), "--jitter", "100%"}
	reaper := start(t, top.curfew, flags...)
	pairs := port.openSome(t, count)
	for _, p := range pairs[:count/20] {
		p.busy()
	}
	reaper.stop()
	start(t, top.curfew, flags...)
	var buckets [5]int
	for _, p := range pairs {
		age := policy.AgeLimit(conntrack.Tuple{Src: p.client.LocalAddr(), Dst: p.client.RemoteAddr()})
		buckets[(age-limit)*time.Duration(len(buckets))/limit]++
		p.mustEnd(t, age)
		p.mustBeReset(t)
	}
	for _, n := range buckets { // 200 are expected
		if n < 100 || n > 300 {
			t.Errorf("the ends are not spread: %v", buckets)
		}
	}
}
