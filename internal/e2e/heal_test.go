package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
	"curfew/rules"
)

// Each way in which somebody takes the table away from a running curfew, or spoils it.
var damages = []struct {
	name string
	nft  string // what nft is told
}{
	{"flush ruleset", "flush ruleset"},
	{"delete table", "delete table inet curfew"},
	{"another ruleset", "flush ruleset\ntable inet firewall { chain input { type filter hook input priority 0; policy accept; }; }"},
	{"flush table", "flush table inet curfew"},
	{"flush chain", "flush chain inet curfew end-prerouting\nflush chain inet curfew end-output"},
	{"accept first", "insert rule inet curfew end-output accept\ninsert rule inet curfew end-prerouting accept"},
	{"chain removed", "delete chain inet curfew end-output\ndelete chain inet curfew end-prerouting"},
	{"port removed", "delete element inet curfew end-by-port { 8081-8083 }"},
	{"another hook", "delete chain inet curfew end-output\nadd chain inet curfew end-output { type filter hook input priority 5; }"},
	{"dropping", "add chain inet curfew input { policy drop; }"},
	{"dormant", "add table inet curfew { flags dormant; }"},
	{"policies gone", "flush chain inet curfew policies"},
}

// sound tells whether the table is as curfew left it.
func sound(h *netnstest.Host) (ok bool) {
	_ = h.Do(func() error {
		in, err := rules.Read()
		if err == nil {
			ok, err = in.Sound()
		}
		return err
	})
	return ok
}

// TestHeal spoils the table while connections are open. It is put back, the log says by whom it was changed, and every
// connection ends at its limit.
func TestHeal(t *testing.T) {
	for _, d := range damages {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			top := topologies(t)["both here"](t)
			top.listen(t)
			reaper := start(t, top.curfew, "--name", "web", "--port", "8081-8083", "--max-age", limit.String())
			before := top.open(t, "before", 20000)
			sleepUntil(before[0].born.to.Add(limit / 3))
			mustAllBeAlive(t, before, "before the damage")
			tool(t, top.curfew, d.nft+"\n", "nft", "-f", "-")
			changed := time.Now()
			eventually(t, "the repair", func() bool { return sound(top.curfew) })
			if took := time.Since(changed); took > late {
				t.Errorf("the repair took %s", took)
			}
			reaper.await(`level=ERROR msg="the rules were changed: put back" by="nft (pid `)
			after := top.open(t, "after", 21000)
			mustAllEnd(t, before, limit)
			mustAllEnd(t, after, limit)
			if n := strings.Count(reaper.log.String(), "put back"); n != 1 {
				t.Errorf("%d repairs, want 1:\n%s", n, reaper.log)
			}
			if list := tool(t, top.curfew, "", "nft", "list", "tables"); d.name == "another ruleset" && !strings.Contains(list, "firewall") {
				t.Errorf("the other table is gone: %s", list)
			}
			reaper.stop()
		})
	}
}

// TestHealGivesWay fights with a program that deletes the table again and again.
func TestHealGivesWay(t *testing.T) {
	t.Parallel()
	h := netnstest.NewHost(t, "host")
	reaper := start(t, h, "--port", "8081", "--max-age", "1h")
	// A table that goes while it is being put back is one repair with the one before.
	const givesWay = `msg="the rules are changed again and again: the next repair waits" by="nft (pid `
	gaveWay := func() bool { return strings.Contains(reaper.log.String(), givesWay) }
	for range 30 {
		_ = h.Run(t.Context(), "nft", "delete", "table", "inet", "curfew") // there is none when it gave way
		eventually(t, "the repair", func() bool { return sound(h) || gaveWay() })
		if gaveWay() {
			break
		}
	}
	if n := strings.Count(reaper.log.String(), "put back"); n > 10 || !gaveWay() {
		t.Errorf("%d repairs, and it gave way: %v", n, gaveWay())
	}
	if sound(h) {
		t.Error("it goes on fighting")
	}
	reaper.stop()
}

// A table of our name that is not ours stays.
func TestHealLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	h := netnstest.NewHost(t, "host")
	reaper := start(t, h, "--port", "8081", "--max-age", "1h")
	tool(t, h, "delete table inet curfew\ntable inet curfew { chain mine { counter; }; }\n", "nft", "-f", "-")
	reaper.await("and a table that is not this curfew's has their name")
	if list := tool(t, h, "", "nft", "list", "ruleset"); !strings.Contains(list, "chain mine") || strings.Contains(list, "end-by-port") {
		t.Errorf("the other table was changed:\n%s", list)
	}
	reaper.stop()
}

// TestReloadUnderLoad changes the limit again and again while connections come and go: none ends early, none late, and
// counters never go back.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	const connections, reloads = 200, 50
	top := topologies(t)["both here"](t)
	top.listen(t)
	file := filepath.Join(t.TempDir(), "curfew.yaml")
	maxAge := 8 * time.Second
	write := func(i int) {
		t.Helper()
		other := fmt.Sprintf("- {name: other, port: %d, max_age: %ds}\n", 9100+i%3, 10+i)
		text := fmt.Sprintf("policies:\n- {name: web, port: 8081, max_age: %s, max_per_source: %d}\n", maxAge, 100_000+i%2)
		if i%4 > 0 {
			text += other
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	reaper := start(t, top.curfew, "-c", file)
	var pairs []*pair
	for i := range connections {
		p := connect(t, top.client, top.v4, netip.MustParseAddr("127.0.0.1"), netnstest.DialOptions{})
		if i%2 == 0 {
			p.busy()
		}
		pairs = append(pairs, p)
	}
	counters := map[string]uint64{}
	for i := range reloads {
		write(i)
		if err := reaper.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the reload", func() bool { return strings.Count(reaper.log.String(), "msg=reloaded") == i+1 })
		for name, c := range readStatus(t, top.curfew).Policies[0].Counters {
			if c.Packets < counters[name] {
				t.Errorf("reload %d: counter %s went from %d to %d", i, name, counters[name], c.Packets)
			}
			counters[name] = c.Packets
		}
	}
	mustAllEnd(t, pairs, maxAge)
	if log := reaper.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("an error in the log:\n%s", log)
	}
	reaper.stop()
}

// TestApplyBesideRun changes the limits of a running reaper from another process.
func TestApplyBesideRun(t *testing.T) {
	t.Parallel()
	top := topologies(t)["both here"](t)
	top.listen(t)
	reaper := start(t, top.curfew, "--name", "web", "--port", "8081-8083", "--max-age", "1h")
	pairs := top.open(t, "before", 20000)
	out := succeed(t, top.curfew, "apply", "--name", "web", "--port", "8081-8083", "--max-age", limit.String())
	if want := fmt.Sprintf("installed; the reaper (pid %d) takes over", reaper.cmd.Process.Pid); !strings.Contains(out, want) {
		t.Errorf("apply says %q, want %q", out, want)
	}
	reaper.await(`msg="another curfew has changed the limits" by="curfew (pid `)
	reaper.await(`policy=web port=8081-8083 limits="max_age 3s"`)
	mustAllEnd(t, pairs, limit)
	if r := curfew(t, top.curfew, "run", "--port", "8081", "--max-age", "1h"); r.code != 1 || !strings.Contains(r.stderr, "a reaper is running already") {
		t.Errorf("a second run: exit code %d\n%s", r.code, r.stderr)
	}
	if s := readStatus(t, top.curfew); len(s.Policies) != 1 || s.Policies[0].MaxAge != limit.Seconds() {
		t.Errorf("a refused run changed the limits: %+v", s.Policies)
	}
	reaper.stop()
}
