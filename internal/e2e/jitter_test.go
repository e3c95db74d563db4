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

// TestJitter opens connections together, which end apart: each at the age that its addresses and ports give it.
func TestJitter(t *testing.T) {
	t.Parallel()
	const count = 50
	policy := ctpolicy.Policy{MaxAge: limit, Jitter: 100}
	top := topologies(t)["server here"](t)
	port := top.listenOn(t, 8081)
	start(t, top.curfew, "--port", "8081", "--max-age", limit.String(), "--jitter", "100%")
	pairs := port.openSome(t, count)
	for _, p := range pairs[:count/2] {
		p.busy()
	}
	var buckets [5]int
	for _, p := range pairs {
		age := policy.AgeLimit(conntrack.Tuple{Src: p.client.LocalAddr(), Dst: p.client.RemoteAddr()})
		buckets[(age-limit)*time.Duration(len(buckets))/limit]++
		p.mustEnd(t, age)
		p.mustBeReset(t)
	}
	for _, n := range buckets { // 10 are expected
		if n == 0 || n > 25 {
			t.Errorf("the ends are not spread: %v", buckets)
		}
	}
}
