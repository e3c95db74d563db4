package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"curfew/internal/netnstest"
)

// A scene is what curfew must leave alone on a host: tables, entries of other flows, and settings.
type scene map[string]string

// passing are settings that are counts, or that show what is being done.
var passing = []string{"net/netfilter/nf_conntrack_count", "net/ipv4/route/", "net/ipv6/route/", "net/netfilter/nf_conntrack_buckets"}

// timestamp is the one setting that curfew changes, and puts back.
const timestamp = "net/netfilter/nf_conntrack_timestamp"

// observe looks at everything.
func observe(t *testing.T, h *netnstest.Host) scene {
	t.Helper()
	s := scene{}
	for line := range strings.Lines(tool(t, h, "", "nft", "-s", "list", "tables")) {
		name := strings.Fields(line)
		if name[2] != "curfew" {
			s[strings.TrimSpace(line)] = tool(t, h, "", "nft", "-s", "list", "table", name[1], name[2])
		}
	}
	s["entries"] = otherEntries(t, h)
	err := h.Do(func() error { return s.addSysctls("/proc/sys/net") })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// addSysctls reads the settings of the thread's namespace.
func (s scene) addSysctls(root string) error {
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name := strings.TrimPrefix(path, "/proc/sys/")
		if slices.ContainsFunc(passing, func(p string) bool { return strings.HasPrefix(name, p) }) {
			return nil
		}
		value, err := os.ReadFile(path)
		if err != nil {
			return nil // some can only be written
		}
		s[name] = string(value)
		return nil
	})
}

var entryTimeout = regexp.MustCompile(`^(tcp +6 )(\d+) `)

// otherEntries are the conntrack entries of flows that no limit covers, sorted. Their timeouts are rounded, because they count down.
func otherEntries(t *testing.T, h *netnstest.Host) string {
	t.Helper()
	var entries []string
	list := tool(t, h, "", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", "9000", "-o", "id")
	list += tool(t, h, "", "conntrack", "-L", "-f", "ipv6", "-p", "tcp", "--orig-port-dst", "9000", "-o", "id")
	for line := range strings.Lines(list) {
		entries = append(entries, entryTimeout.ReplaceAllStringFunc(line, func(m string) string {
			seconds, _ := strconv.Atoi(strings.Fields(m)[2])
			return fmt.Sprintf("tcp 6 about %d ", (seconds+500)/1000*1000)
		}))
	}
	slices.Sort(entries) // some versions list both families twice
	return strings.Join(slices.Compact(entries), "")
}

// mustBe compares with an earlier scene.
func (s scene) mustBe(t *testing.T, before scene, when string, except ...string) {
	t.Helper()
	for name := range maps.Keys(s) {
		if _, ok := before[name]; !ok {
			t.Errorf("%s: %s is new", when, name)
		}
	}
	for name, want := range before {
		if got := s[name]; got != want && !slices.Contains(except, name) {
			t.Errorf("%s: %s was\n%s\nand is\n%s", when, name, want, got)
		}
	}
}

// TestGatewayIsUntouched compares the gateway before, with curfew at work, and after it was removed.
func TestGatewayIsUntouched(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for _, dev := range []string{"all", "default", g.Near.B.Dev, g.Far.A.Dev} {
		if err := g.Gateway.SetSysctl("net/ipv4/conf/"+dev+"/rp_filter", "1"); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, g.Gateway, `
table inet theirs {
	map marks { type inet_service : mark; elements = { 9000 : 0x77 }; }
	chain remember { type filter hook prerouting priority mangle; ct mark set tcp dport map @marks; }
}
`, "nft", "-f", "-")
	others := open(t, []*route{g.uncovered}, "not covered", traffics[3])
	before := observe(t, g.Gateway)
	if n := strings.Count(before["entries"], "about 432000 ESTABLISHED"); n != len(others) {
		t.Fatalf("%d entries of other flows, want %d:\n%s", n, len(others), before["entries"])
	}

	reaper := start(t, g.Gateway, gatewayFlags...)
	streams := open(t, g.routes, "covered", traffics...)
	observe(t, g.Gateway).mustBe(t, before, "while running", timestamp)
	mustAllEndWhole(t, limit, streams)
	observe(t, g.Gateway).mustBe(t, before, "after the limit", timestamp)
	reaper.stop()
	observe(t, g.Gateway).mustBe(t, before, "stopped", timestamp)
	succeed(t, g.Gateway, "remove")
	observe(t, g.Gateway).mustBe(t, before, "removed")
	mustGoOn(t, others)
}
