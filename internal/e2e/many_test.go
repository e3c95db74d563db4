package e2e

import (
	"sync"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// TestGatewayManyAtOnce has idle connections that are all due in the same moment.
func TestGatewayManyAtOnce(t *testing.T) {
	const (
		count   = 2000
		maxAge  = 10 * time.Second
		allLate = 3 * time.Second // after the last is due, all are closed
	)
	g := newGateway(t)
	start(t, g.Gateway, "--port", natPorts, "--max-age", maxAge.String())
	begin := time.Now()
	pairs := openMany(t, g.routes, count)
	t.Logf("opened %d in %s", len(pairs), time.Since(begin))
	var lastDue, lastEnd time.Time
	for _, p := range pairs {
		if due := p.born.to.Add(maxAge); due.After(lastDue) {
			lastDue = due
		}
	}
	open := 0
	for _, p := range pairs {
		for name, end := range p.ends() {
			if err := end.WaitEnd(time.Until(lastDue.Add(allLate))); err != nil {
				open++
				continue
			}
			if age := end.EndedAt().Sub(p.born.from); age < maxAge {
				t.Errorf("%s, %s: ended early, after %s (%v)", p.name, name, age, end.Err())
			}
			if end.EndedAt().After(lastEnd) {
				lastEnd = end.EndedAt()
			}
		}
		if !t.Failed() {
			p.mustBeReset(t)
		}
	}
	if open > 0 {
		t.Errorf("%d of %d ends are open %s after the last was due", open, 2*len(pairs), time.Since(lastDue))
	}
	t.Logf("the last end came %s after the last was due", lastEnd.Sub(lastDue))
}

// openMany opens idle connections, at the same time on all routes and in both families.
func openMany(t *testing.T, routes []*route, count int) []*pair {
	t.Helper()
	var mu sync.Mutex
	var all []*pair
	var group sync.WaitGroup
	for _, r := range routes {
		for _, f := range families {
			group.Go(func() {
				for range count / len(routes) / len(families) {
					p, err := r.tryConnect(f, netnstest.DialOptions{})
					if err != nil {
						t.Errorf("%s, %s: %v", f.name, r.name, err)
						return
					}
					mu.Lock()
					all = append(all, p)
					mu.Unlock()
				}
			})
		}
	}
	group.Wait()
	return all
}
