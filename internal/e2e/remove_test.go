package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
)

// entries are what conntrack knows of a host's flows to a range of ports.
func entries(t *testing.T, h *netnstest.Host, filter conntrack.Filter, first, last uint16) []conntrack.Entry {
	t.Helper()
	var found []conntrack.Entry
	err := h.Do(func() error {
		dumper, err := conntrack.Open(1 << 20)
		if err != nil {
			return err
		}
		defer dumper.Close()
		return dumper.Dump(filter, func(e *conntrack.Entry) error {
			if port := e.Orig.Dst.Port(); port >= first && port <= last {
				found = append(found, *e)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

var (
	everything = conntrack.Filter{}
	fixed      = conntrack.Filter{Status: conntrack.StatusFixedTimeout, StatusMask: conntrack.StatusFixedTimeout}
)

func labelled(list []conntrack.Entry) (n int) {
	for i := range list {
		if list[i].HasLabel(ctpolicy.LabelTracked) || list[i].HasLabel(ctpolicy.LabelRegistered) {
			n++
		}
	}
	return n
}

func mustHaveSysctl(t *testing.T, h *netnstest.Host, want, when string) {
	t.Helper()
	if got, err := h.Sysctl(timestampSysctl); err != nil || got != want {
		t.Errorf("%s %s: %q (%v), want %q", timestampSysctl, when, got, err, want)
	}
}

// pinnedLimit is long enough for every pin to come 2 s before its deadline.
const pinnedLimit = 2 * limit

// TestRemove takes curfew away while connections are pinned, and then brings it back.
func TestRemove(t *testing.T) {
	for name, timestamps := range map[string]string{"both here": "0", "server here": "1"} {
		t.Run(name+", nf_conntrack_timestamp="+timestamps, func(t *testing.T) {
			t.Parallel()
			s := &removal{t: t, top: topologies(t)[name](t), timestamps: timestamps}
			s.top.name = name
			s.limit()
			s.removePinned()
			s.liveOn()
			s.limitAgain()
		})
	}
}

// A removal is the story of one host.
type removal struct {
	t          *testing.T
	top        *topology
	timestamps string

	port     *limitedPort
	ruleset  string
	reaper   *process
	pairs    []*pair // limited, then released
	removed  time.Time
	released []*pair // opened while there was no limit
}

func (s *removal) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("%s: %s", s.top.name, fmt.Sprintf(format, args...))
}

func (s *removal) counterless() string {
	return tool(s.t, s.top.curfew, "", "nft", "-s", "list", "ruleset")
}

// limit limits connections that were open before, and some that were not.
func (s *removal) limit() {
	t, top := s.t, s.top
	tracking(t, top.curfew, s.timestamps)
	s.ruleset = s.counterless()
	s.port = top.listenOn(t, 8081)
	s.pairs = append(s.port.open(t, "opened before, silent"), s.port.openBusy(t, "opened before, busy")...)
	s.reaper = start(t, top.curfew, "--port", "8081", "--max-age", pinnedLimit.String())
	mustHaveSysctl(t, top.curfew, "1", "while curfew is installed")
	s.pairs = append(s.pairs, s.port.open(t, "opened after, silent")...)
	s.pairs = append(s.pairs, s.port.openBusy(t, "opened after, busy")...)
}

// removePinned removes curfew as soon as everything is pinned.
func (s *removal) removePinned() {
	t, top := s.t, s.top
	eventually(t, "all connections of "+top.name+" to be pinned", func() bool {
		return len(entries(t, top.curfew, fixed, 8081, 8081)) == len(s.pairs)
	})
	if labelled(entries(t, top.curfew, everything, 8081, 8081)) == 0 {
		s.fail("no entry has a label while curfew is installed")
	}
	s.mustRefuse()
	fresh := s.port.openBusy(t, "opened last, not pinned yet")
	s.reaper.stop()
	if out, want := succeed(t, top.curfew, "remove"), fmt.Sprintf("removed; %d pinned connections released\n", len(s.pairs)); out != want {
		s.fail("remove printed %q, want %q", out, want)
	}
	s.removed = time.Now()
	s.pairs = append(s.pairs, fresh...)
	mustAllBeAlive(t, s.pairs, "right after remove")
	if ruleset := s.counterless(); ruleset != s.ruleset {
		s.fail("ruleset after remove:\n%s\nbefore curfew:\n%s", ruleset, s.ruleset)
	}
	mustHaveSysctl(t, top.curfew, s.timestamps, "after remove")
	if n := len(entries(t, top.curfew, fixed, 1, 65535)); n > 0 {
		s.fail("%d entries are still pinned", n)
	}
	if n := labelled(entries(t, top.curfew, everything, 1, 65535)); n > 0 {
		s.fail("%d entries still have a label", n)
	}
	r := curfew(t, top.curfew, "remove")
	if r.code != 0 || !strings.Contains(r.stdout, "nothing to remove") || r.stderr != "" {
		s.fail("a second remove: %+v", r)
	}
}

// mustRefuse tries to remove while the reaper runs.
func (s *removal) mustRefuse() {
	before := s.counterless()
	r := curfew(s.t, s.top.curfew, "remove")
	pid := fmt.Sprintf("(pid %d)", s.reaper.cmd.Process.Pid)
	if r.code != 1 || !strings.Contains(r.stderr, pid) || !strings.Contains(r.stderr, "hint: ") || r.stdout != "" {
		s.fail("remove beside a reaper: %+v, want exit code 1 and %s", r, pid)
	}
	if after := s.counterless(); after != before {
		s.fail("a refused remove changed the rules:\n%s\nbefore:\n%s", after, before)
	}
	mustHaveSysctl(s.t, s.top.curfew, "1", "after a refused remove")
	if n := len(entries(s.t, s.top.curfew, fixed, 8081, 8081)); n != len(s.pairs) {
		s.fail("%d entries are pinned after a refused remove, want %d", n, len(s.pairs))
	}
}

// liveOn waits until every limit of before would have passed once more.
func (s *removal) liveOn() {
	sleepUntil(s.removed.Add(pinnedLimit + late))
	mustAllBeAlive(s.t, s.pairs, "although curfew was removed")
	for _, p := range s.pairs {
		p.mustTalk(s.t)
	}
	s.released = append(s.port.open(s.t, "opened without a limit, silent"), s.port.openBusy(s.t, "opened without a limit, busy")...)
}

// limitAgain installs the limit again. Connections whose birth conntrack knows have their true age; the others get a
// full limit.
func (s *removal) limitAgain() {
	sleepUntil(s.released[len(s.released)-1].born.to.Add(pinnedLimit / 6))
	from := time.Now()
	s.reaper = start(s.t, s.top.curfew, "--port", "8081", "--max-age", pinnedLimit.String())
	installed := span{from, time.Now()}
	for _, p := range s.released {
		if s.timestamps == "0" {
			p.born = installed
		}
		p.mustEnd(s.t, pinnedLimit)
	}
	for _, p := range s.pairs {
		// They have been open for longer than the limit, so any end is late, but not later than that of a new connection.
		p.born.to = installed.to
		p.mustEnd(s.t, pinnedLimit)
	}
	s.reaper.stop()
	succeed(s.t, s.top.curfew, "remove")
	if ruleset := s.counterless(); ruleset != s.ruleset {
		s.fail("ruleset after the second remove:\n%s\nbefore curfew:\n%s", ruleset, s.ruleset)
	}
	mustHaveSysctl(s.t, s.top.curfew, s.timestamps, "after the second remove")
	if slices.ContainsFunc(s.pairs, func(p *pair) bool { return p.client.Alive() }) {
		s.fail("a connection outlived the second limit")
	}
}

// What the lost table knew is not forgotten: the sysctl's old value, and since when connections are limited.
func TestRemoveAfterALostTable(t *testing.T) {
	t.Parallel()
	h := netnstest.NewHost(t, "host")
	server := h.Listen(t, "tcp4", "127.0.0.1:8081")
	before := connect(t, h, server, server.Addr().Addr(), netnstest.DialOptions{})
	from := time.Now()
	p := start(t, h, "--port", "8081", "--max-age", limit.String())
	before.born = span{from, time.Now()}
	sleepUntil(before.born.to.Add(limit / 3))
	tool(t, h, "", "nft", "flush", "ruleset")
	p.await("the rules were changed: put back")
	before.mustEnd(t, limit)
	p.stop()
	succeed(t, h, "remove")
	if value, err := h.Sysctl(timestampSysctl); err != nil || value != "0" {
		t.Errorf("the sysctl is %q (%v), was 0", value, err)
	}
}
