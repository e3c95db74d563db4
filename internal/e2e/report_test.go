package e2e

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestReport has a policy that ends nothing: it says once of each connection that it would, also after a reload.
func TestReport(t *testing.T) {
	t.Parallel()
	for _, top := range eachTopology(t) {
		port := top.listenOn(t, 8081)
		p := start(t, top.curfew, "--port", "8081", "--max-age", limit.String(), "--mode", "report")
		reports := func() int { return strings.Count(p.log.String(), `msg="would end"`) }
		pairs := slices.Concat(port.open(t, "silent"), port.openBusy(t, "busy"))
		sleepUntil(pairs[0].born.from.Add(limit - early))
		if n := reports(); n != 0 {
			t.Errorf("%s: %d reported early", top.name, n)
		}
		eventually(t, top.name+": a report of each", func() bool { return reports() == len(pairs) })
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, top.name+": a reload", func() bool { return strings.Contains(p.log.String(), "msg=reloaded") })
		later := port.open(t, "after the reload")
		eventually(t, top.name+": a report of the later ones", func() bool { return reports() >= len(pairs)+len(later) })
		if n := reports(); n != len(pairs)+len(later) {
			t.Errorf("%s: %d reports of %d connections", top.name, n, len(pairs)+len(later))
		}
		pairs = append(pairs, later...)
		mustAllBeAlive(t, pairs, "although the policy only reports")
		for _, p := range pairs {
			p.mustTalk(t)
		}
		if log := p.log.String(); strings.Contains(log, "msg=ended") || !strings.Contains(log, "method=reported client=reported server=reported") {
			t.Errorf("%s: unexpected lines in the log", top.name)
		}
		if listed := tool(t, top.curfew, "", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", "8081"); strings.Contains(listed, "FIXED_TIMEOUT") {
			t.Errorf("%s: a connection is pinned:\n%s", top.name, listed)
		}
	}
}
