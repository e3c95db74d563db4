package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// limitedPort is one port with a server for each family.
type limitedPort struct {
	top    *topology
	v4, v6 *netnstest.Server
}

func (top *topology) listenOn(t *testing.T, port int) *limitedPort {
	t.Helper()
	return &limitedPort{
		top,
		top.server.Listen(t, "tcp4", fmt.Sprintf("0.0.0.0:%d", port)),
		top.server.Listen(t, "tcp6", fmt.Sprintf("[::]:%d", port)),
	}
}

// open opens a connection for each family.
func (l *limitedPort) open(t *testing.T, name string) []*pair {
	t.Helper()
	name = fmt.Sprintf("%s, port %d, %s", l.top.name, l.v4.Port(), name)
	p4 := connect(t, l.top.client, l.v4, l.top.address4, netnstest.DialOptions{})
	p6 := connect(t, l.top.client, l.v6, l.top.address6, netnstest.DialOptions{})
	p4.name, p6.name = name+", IPv4", name+", IPv6"
	return []*pair{p4, p6}
}

// openBusy opens connections whose ends both write.
func (l *limitedPort) openBusy(t *testing.T, name string) []*pair {
	t.Helper()
	pairs := l.open(t, name)
	for _, p := range pairs {
		p.busy()
	}
	return pairs
}

// eachTopology builds all topologies at once, so that one story can be told in all of them at the same time.
func eachTopology(t *testing.T) []*topology {
	t.Helper()
	var list []*topology
	for name, build := range topologies(t) {
		top := build(t)
		top.name = name
		list = append(list, top)
	}
	return list
}

// talk sends a byte from one end, and notes that this was the last packet.
func (p *pair) talk(t *testing.T, from, to *netnstest.Conn) {
	t.Helper()
	before, start := to.Received(), time.Now()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Errorf("%s: write %.3f s after the last packet: %v", p.name, time.Since(p.born.to).Seconds(), err)
		return
	}
	eventually(t, p.name+": a byte to arrive", func() bool { return to.Received() > before })
	p.born = span{start, time.Now()}
}

func mustAllEnd(t *testing.T, pairs []*pair, limit time.Duration) {
	t.Helper()
	for _, p := range pairs {
		p.mustEnd(t, limit)
	}
}

// TestIdleLimit pauses connections in different ways. The time of a pair's birth is that of its last packet here.
func TestIdleLimit(t *testing.T) {
	t.Parallel()
	const (
		idle     = 2 * time.Second
		talkEach = 500 * time.Millisecond
		story    = 6 * time.Second
	)
	var silent, paused, talking []*pair
	var quiet []*limitedPort
	tops := eachTopology(t)
	for _, top := range tops {
		port := top.listenOn(t, 8081)
		quiet = append(quiet, top.listenOn(t, 8082))
		before := port.open(t, "opened before, silent")
		talking = append(talking, port.open(t, "opened before, talks")...)
		from := time.Now()
		start(t, top.curfew, "--port", "8081,8082", "--idle", idle.String())
		installed := span{from, time.Now()}
		for _, p := range before {
			p.born = installed
		}
		silent = append(silent, before...)
		silent = append(silent, port.open(t, "opened after, silent")...)
		paused = append(paused, port.open(t, "pauses after 1 s")...)
		talking = append(talking, port.open(t, "talks")...)
	}
	begin := time.Now()
	for i := 1; i <= int(story/talkEach); i++ {
		sleepUntil(begin.Add(time.Duration(i) * talkEach))
		for j, p := range talking {
			// Some connections have a client that talks, some a server.
			if j%4 < 2 {
				p.talk(t, p.client, p.server)
			} else {
				p.talk(t, p.server, p.client)
			}
		}
		if i == 2 {
			for _, p := range paused {
				p.talk(t, p.client, p.server)
			}
		}
	}
	mustAllBeAlive(t, talking, "although it talks")
	for _, p := range slices.Concat(silent, paused) {
		p.mustEnd(t, idle)
		p.mustBeReset(t)
	}
	mustAllEnd(t, talking, idle)
	for _, l := range quiet {
		for _, p := range l.open(t, "a listener that had no traffic") {
			p.mustTalk(t)
		}
	}
}

// TestLimitsOfSeveralPolicies gives four ports different limits in one command line, and half-closes connections.
func TestLimitsOfSeveralPolicies(t *testing.T) {
	t.Parallel()
	const (
		shortAge  = 2 * time.Second
		onlyIdle  = 3 * time.Second
		earlyAge  = 4 * time.Second
		lateIdle  = 10 * time.Second
		lateAge   = 6 * time.Second
		earlyIdle = 2 * time.Second
	)
	var aged2, idle3, aged4, idle2, aged6, forever []*pair
	for _, top := range eachTopology(t) {
		a, b, c, d := top.listenOn(t, 8081), top.listenOn(t, 8082), top.listenOn(t, 8083), top.listenOn(t, 8084)
		start(t, top.curfew, "--port", "8081", "--max-age", shortAge.String(), "--port", "8082", "--idle", onlyIdle.String(),
			"--port", "8083", "--max-age", earlyAge.String(), "--idle", lateIdle.String(),
			"--port", "8084", "--max-age", lateAge.String(), "--idle", earlyIdle.String())
		aged2 = append(aged2, a.open(t, "silent")...)
		aged2 = append(aged2, a.openBusy(t, "busy")...)
		idle3 = append(idle3, b.open(t, "silent")...)
		forever = append(forever, b.openBusy(t, "busy")...)
		aged4 = append(aged4, c.open(t, "silent")...)
		aged4 = append(aged4, c.openBusy(t, "busy")...)
		aged4 = append(aged4, halfClosed(t, c)...)
		idle2 = append(idle2, d.open(t, "silent")...)
		aged6 = append(aged6, d.openBusy(t, "busy")...)
	}
	mustAllEnd(t, aged2, shortAge)
	mustAllEnd(t, idle2, earlyIdle)
	mustAllEnd(t, idle3, onlyIdle)
	mustAllEnd(t, aged4, earlyAge)
	mustAllEnd(t, aged6, lateAge)
	mustAllBeAlive(t, forever, "although only pauses are limited")
	for _, p := range forever {
		p.mustTalk(t)
	}
}

// halfClosed opens connections of which one end has sent its FIN; the other end is silent or goes on writing.
func halfClosed(t *testing.T, l *limitedPort) []*pair {
	t.Helper()
	var all []*pair
	for _, closer := range []string{"client", "server"} {
		for _, writes := range []bool{false, true} {
			for _, p := range l.open(t, fmt.Sprintf("half-closed by the %s, the other end writes: %v", closer, writes)) {
				p.client.AllowHalfClose()
				p.server.AllowHalfClose()
				other := map[string]*netnstest.Conn{"client": p.server, "server": p.client}[closer]
				if err := p.ends()[closer].CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if writes {
					other.Busy(pace)
				}
				all = append(all, p)
			}
		}
	}
	return all
}

// TestExistingReset ends what is open when curfew comes.
func TestExistingReset(t *testing.T) {
	t.Parallel()
	tops := eachTopology(t)
	var after []*pair
	for _, top := range tops {
		port := top.listenOn(t, 8081)
		other := top.listenOn(t, 9000)
		before := append(port.open(t, "silent"), port.openBusy(t, "busy")...)
		spared := other.open(t, "not covered")
		from := time.Now()
		start(t, top.curfew, "--port", "8081", "--max-age", limit.String(), "--existing", "reset")
		installed := span{from, time.Now()}
		for _, p := range before {
			p.born = installed
			p.mustEnd(t, 0)
			p.mustBeReset(t)
		}
		mustAllBeAlive(t, spared, "although its port is not covered")
		after = append(after, port.open(t, "opened after, silent")...)
		after = append(after, port.openBusy(t, "opened after, busy")...)
	}
	mustAllEnd(t, after, limit)
}

// tracking makes a host's connection tracking work, with birth times, as a machine with a firewall may have it.
func tracking(t *testing.T, h *netnstest.Host, timestamps string) {
	t.Helper()
	tool(t, h, foreignTable, "nft", "-f", "-")
	if err := h.SetSysctl(timestampSysctl, timestamps); err != nil {
		t.Fatal(err)
	}
}

const (
	timestampSysctl = "net.netfilter.nf_conntrack_timestamp"
	foreignTable    = `table inet firewall {
	chain in {
		type filter hook input priority filter; policy accept;
		ct state established,related counter accept
		tcp dport 4444 drop
	}
	chain out {
		type filter hook output priority filter; policy accept;
		ct state new accept
	}
}
`
)

// TestTrueAge starts curfew where conntrack knows when connections were born.
func TestTrueAge(t *testing.T) {
	t.Parallel()
	var overdue, younger []*pair
	tops := eachTopology(t)
	ports := make([]*limitedPort, len(tops))
	for i, top := range tops {
		tracking(t, top.curfew, "1")
		ports[i] = top.listenOn(t, 8081)
		overdue = append(overdue, ports[i].open(t, "overdue, silent")...)
		overdue = append(overdue, ports[i].openBusy(t, "overdue, busy")...)
	}
	sleepUntil(time.Now().Add(limit / 2))
	for _, port := range ports {
		younger = append(younger, port.open(t, "younger, silent")...)
		younger = append(younger, port.openBusy(t, "younger, busy")...)
	}
	sleepUntil(overdue[len(overdue)-1].born.to.Add(limit + early))
	mustAllBeAlive(t, overdue, "before curfew came")
	for i, top := range tops {
		from := time.Now()
		start(t, top.curfew, "--port", "8081", "--max-age", limit.String())
		for _, p := range overdue[4*i : 4*i+4] {
			p.born = span{from, time.Now()}
			p.mustEnd(t, 0)
			p.mustBeReset(t)
		}
	}
	mustAllBeAlive(t, younger, "although it is younger")
	mustAllEnd(t, younger, limit)
}

// TestReap uses no reaper that stays: apply, and then single passes.
func TestReap(t *testing.T) {
	t.Parallel()
	const (
		idle   = 2 * time.Second
		maxAge = 3 * time.Second
	)
	// What a pass finds in one topology: one connection for each family.
	type found struct{ tooOld, tooIdle, forgotten, inTime []*pair }
	tops := eachTopology(t)
	all := make([]found, len(tops))
	for i, top := range tops {
		tooOld, idling := top.listenOn(t, 8081), top.listenOn(t, 8082)
		succeed(t, top.curfew, "apply", "--port", "8081", "--max-age", maxAge.String(), "--port", "8082", "--idle", idle.String())
		all[i] = found{
			tooOld: tooOld.open(t, "too old"), tooIdle: idling.open(t, "too idle"),
			forgotten: idling.open(t, "too idle, its entry has expired"), inTime: idling.open(t, "in time"),
		}
	}
	// The entry of a pausing connection lives for the limit and one second more.
	begin := time.Now()
	sleepUntil(begin.Add(maxAge/2 - idle/4))
	for i := range all {
		for _, p := range all[i].tooIdle {
			p.talk(t, p.client, p.server)
		}
	}
	sleepUntil(begin.Add(maxAge - idle/4))
	for i := range all {
		for _, p := range all[i].inTime {
			p.talk(t, p.server, p.client)
		}
	}
	sleepUntil(begin.Add(maxAge + idle/4))
	for i, top := range tops {
		f := &all[i]
		for _, p := range f.forgotten {
			if listed := tool(t, top.curfew, "", "conntrack", "-L"); strings.Contains(listed, fmt.Sprintf("sport=%d ", p.client.LocalAddr().Port())) {
				t.Fatalf("%s: the entry is still there", p.name)
			}
		}
		overdue := slices.Concat(f.tooOld, f.tooIdle, f.forgotten)
		mustAllBeAlive(t, overdue, "before the pass")
		from := time.Now()
		out := succeed(t, top.curfew, "reap")
		passed := span{from, time.Now()}
		if want := "6 ended, 0 survived, 0 adopted\n"; out != want {
			t.Errorf("%s: reap printed %q, want %q", top.name, out, want)
		}
		for _, p := range overdue {
			p.born = passed
			p.mustEnd(t, 0)
			p.mustBeReset(t)
		}
		mustAllBeAlive(t, f.inTime, "although its time is not up")
		for _, p := range f.inTime {
			p.mustTalk(t)
		}
		if out := succeed(t, top.curfew, "reap"); !strings.HasPrefix(out, "0 ended, 0 survived") {
			t.Errorf("%s: a second pass printed %q", top.name, out)
		}
		mustAllBeAlive(t, f.inTime, "after the second pass")
	}
}

// A timer's passes are far apart. A connection that one of them has pinned, and that is silent when its time is up, is
// still found by the next: its entry lasts for the window.
func TestReapLongAfterAPin(t *testing.T) {
	t.Parallel()
	const (
		maxAge = 16 * time.Second
		pass   = 9 * time.Second // the first, from the last apply on: within lead
		talk   = 12 * time.Second
		again  = 27 * time.Second
	)
	tops := eachTopology(t)
	var pinned [][]*pair
	for _, top := range tops {
		port := top.listenOn(t, 8081)
		pairs := port.open(t, "before")
		succeed(t, top.curfew, "apply", "--port", "8081", "--max-age", maxAge.String())
		pinned = append(pinned, append(pairs, port.open(t, "after")...))
	}
	begin := time.Now()
	sleepUntil(begin.Add(pass))
	for _, top := range tops {
		succeed(t, top.curfew, "reap")
	}
	sleepUntil(begin.Add(talk))
	for i := range tops {
		for _, p := range pinned[i] {
			p.talk(t, p.client, p.server)
		}
	}
	sleepUntil(begin.Add(again))
	for i, top := range tops {
		mustAllBeAlive(t, pinned[i], "before the second pass")
		from := time.Now()
		out := succeed(t, top.curfew, "reap")
		if want := fmt.Sprintf("%d ended, 0 survived, 0 adopted\n", len(pinned[i])); out != want {
			t.Errorf("%s: the second pass printed %q, want %q", top.name, out, want)
		}
		for _, p := range pinned[i] {
			p.born = span{from, time.Now()}
			p.mustEnd(t, 0)
		}
	}
}
