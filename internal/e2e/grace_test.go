package e2e

import (
	"slices"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// A farewell is a connection that is busy until a moment, and then pauses.
type farewell struct {
	*pair
	kind       string
	ways       [][2]*netnstest.Conn // who sends to whom
	until      time.Duration        // after its birth
	from, upTo time.Duration        // after its birth, when it must end
}

// talk sends a byte each pace until the pause.
func (f *farewell) talk(t *testing.T) {
	for next := f.born.from; next.Before(f.born.from.Add(f.until)); next = next.Add(5 * pace) {
		sleepUntil(next)
		for _, way := range f.ways {
			if _, err := way[0].Write([]byte("x")); err != nil {
				if f.until < f.from { // it must not have ended
					t.Errorf("%s, %s: %v after %s", f.name, f.kind, err, time.Since(f.born.from))
				}
				return
			}
		}
	}
}

const (
	grace      = 4 * time.Second
	gracePause = time.Second
	pauseAt    = limit + 1500*time.Millisecond
)

// farewells open what there is to tell about grace. seen is how long it may take to notice a pause.
func farewells(open func() *pair, seen time.Duration) (list []*farewell) {
	add := func(kind string, until, from, upTo time.Duration, ways func(p *pair) [][2]*netnstest.Conn) {
		p := open()
		list = append(list, &farewell{p, kind, ways(p), until, from, upTo})
	}
	both := func(p *pair) [][2]*netnstest.Conn {
		return [][2]*netnstest.Conn{{p.client, p.server}, {p.server, p.client}}
	}
	client := func(p *pair) [][2]*netnstest.Conn { return both(p)[:1] }
	server := func(p *pair) [][2]*netnstest.Conn { return both(p)[1:] }
	add("silent", 0, limit, limit, both)
	add("pauses before its limit", limit/2, limit, limit, both)
	for kind, ways := range map[string]func(*pair) [][2]*netnstest.Conn{"both send": both, "client sends": client, "server sends": server} {
		add(kind+", pauses in its grace", pauseAt, pauseAt+gracePause-5*pace, pauseAt+gracePause+seen, ways)
		add(kind+" all the time", time.Hour, limit+grace, limit+grace, ways)
	}
	return list
}

// TestGrace lets connections that are busy at their limit go on until they pause, local and forwarded ones.
func TestGrace(t *testing.T) {
	t.Parallel()
	flags := []string{"--max-age", limit.String(), "--grace", grace.String()}
	var all []*farewell
	for _, top := range eachTopology(t) {
		port := top.listenOn(t, 8081)
		start(t, top.curfew, append(flags, "--port", "8081")...)
		all = slices.Concat(all, farewells(func() *pair { return port.openSome(t, 1)[0] }, 0))
	}
	g := newGateway(t)
	start(t, g.Gateway, append(flags, "--port", natPorts)...)
	for _, r := range g.routes {
		all = slices.Concat(all, farewells(func() *pair { return r.connect(t, families[0], netnstest.DialOptions{}) }, 1600*time.Millisecond)) // the entry counts whole seconds
	}
	for _, f := range all {
		go f.talk(t)
	}
	for _, f := range all {
		for name, end := range f.ends() {
			if err := end.WaitEnd(time.Until(f.born.to.Add(f.upTo)) + patience); err != nil {
				t.Errorf("%s, %s, %s: still open %s after birth", f.name, f.kind, name, time.Since(f.born.to))
				continue
			}
			if age := end.EndedAt().Sub(f.born.from); age < f.from {
				t.Errorf("%s, %s, %s: ended early, after %s", f.name, f.kind, name, age)
			}
			if age := end.EndedAt().Sub(f.born.to); age > f.upTo+late {
				t.Errorf("%s, %s, %s: ended late, after %s", f.name, f.kind, name, age)
			}
		}
		f.mustBeReset(t)
	}
}
