package e2e

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// Policies that the rules must hold without a reaper, too.
var lapses = []struct {
	name   string
	flags  []string
	last   time.Duration // the greatest age
	report bool
}{
	{name: "jitter", flags: []string{"--jitter", "50%"}, last: limit * 3 / 2},
	{name: "grace", flags: []string{"--grace", "1s"}, last: limit + time.Second},
	{name: "direction and sources", flags: []string{"--direction", "inbound", "--from", "127.0.0.0/8,::1"}, last: limit},
	{name: "per source", flags: []string{"--max-per-source", "1000"}, last: limit},
	{name: "report", flags: []string{"--mode", "report"}, report: true},
}

// TestLapse kills reapers at random moments and leaves them dead. What talks ends all the same: what was opened after the
// heartbeat had lapsed at its limit, what was open then one limit later at the latest, and nothing early.
func TestLapse(t *testing.T) {
	t.Parallel()
	const moments = 1 // of each kind: each takes 16 seconds
	for _, l := range lapses {
		for i := range moments {
			t.Run(fmt.Sprintf("%s %d", l.name, i), func(t *testing.T) {
				t.Parallel()
				top := topologies(t)["both here"](t)
				top.listen(t)
				reaper := start(t, top.curfew, append([]string{"--name", "web", "--port", "8081-8083", "--max-age", limit.String()}, l.flags...)...)
				time.Sleep(rand.N(3 * time.Second)) // the moment
				reaper.signal(syscall.SIGKILL)
				killed := time.Now()
				sleepUntil(killed.Add(heartbeat - limit/2))
				open := onlyBusy(top.open(t, "before the lapse", 20000))
				sleepUntil(killed.Add(heartbeat + early))
				lapsed := time.Now()
				later := onlyBusy(top.open(t, "after the lapse", 21000))
				if l.report {
					sleepUntil(lapsed.Add(2 * limit))
					mustAllBeAlive(t, append(open, later...), "although the policy only reports")
					if n := readStatus(t, top.curfew).Policies[0].Counters["reported"].Packets; n != uint64(len(open)+len(later)) {
						t.Errorf("%d flows are counted as overdue, want %d", n, len(open)+len(later))
					}
					return
				}
				for _, p := range later {
					mustEndBetween(t, p, p.born, limit, l.last+late)
				}
				for _, p := range open {
					mustEndBetween(t, p, span{p.born.from, lapsed}, limit, l.last+late)
				}
			})
		}
	}
}

// onlyBusy closes the others.
func onlyBusy(pairs []*pair) (busy []*pair) {
	for i, p := range pairs {
		if i%2 == 1 {
			busy = append(busy, p)
		} else {
			p.close()
		}
	}
	return busy
}

// mustEndBetween counts the least from the earliest moment of a span, and the most from its latest.
func mustEndBetween(t *testing.T, p *pair, since span, least, most time.Duration) {
	t.Helper()
	for name, end := range p.ends() {
		if err := end.WaitEnd(time.Until(since.to.Add(most)) + patience); err != nil {
			t.Errorf("%s, %s: still open", p.name, name)
			continue
		}
		if age := end.EndedAt().Sub(since.from); age < least {
			t.Errorf("%s, %s: ended early, after %.3f s (%v)", p.name, name, age.Seconds(), end.Err())
		}
		if age := end.EndedAt().Sub(since.to); age > most {
			t.Errorf("%s, %s: ended late, after %.3f s (%v)", p.name, name, age.Seconds(), end.Err())
		}
	}
}
