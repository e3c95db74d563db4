package rules_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
	"curfew/rules"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

var update = flag.Bool("update", false, "write the golden files anew")

func ports(t *testing.T, s string) []ctpolicy.PortRange {
	t.Helper()
	p, err := ctpolicy.ParsePorts(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func prefixes(t *testing.T, s string) ctpolicy.Prefixes {
	t.Helper()
	p, err := ctpolicy.ParsePrefixes(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func rate(t *testing.T, s string) ctpolicy.SourceRate {
	t.Helper()
	r, err := ctpolicy.ParseSourceRate(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func config(t *testing.T) rules.Config {
	t.Helper()
	return rules.Config{
		Policies: []ctpolicy.Policy{
			{Name: "ldap", Ports: ports(t, "389,636"), MaxAge: time.Hour, Idle: 10 * time.Minute},
			{Name: "web", Ports: ports(t, "8000-8010,65535"), MaxAge: 30 * time.Second, Jitter: 10, Grace: 5 * time.Second},
			{
				Name: "shop", Ports: ports(t, "80,443"), MaxAge: 30 * time.Second, MaxPerSource: 10, NewPerSource: rate(t, "15/minute burst 10"), Rate: 200,
				Direction: ctpolicy.Inbound,
			},
			{
				Name: "partners", Ports: ports(t, "443"), MaxAge: time.Hour, Direction: ctpolicy.Forwarded, From: prefixes(t, "192.0.2.0/24"),
			},
			{Name: "trial", Ports: ports(t, "443,8443"), MaxAge: time.Minute, Idle: 10 * time.Second, MaxPerSource: 5, SourcePrefix6: 48, Mode: ctpolicy.Report},
			{Name: "few", Ports: ports(t, "25"), MaxPerSource: 3, Refuse: ctpolicy.Drop},
			{
				Name: "ssh", Ports: ports(t, "22"), Idle: 2 * time.Hour, Direction: ctpolicy.Forwarded,
				From: prefixes(t, "10.0.0.0/8,fd00::/8"), To: prefixes(t, "192.0.2.0/25,192.0.2.128/25"), Except: prefixes(t, "10.0.0.1,fd00::1"),
			},
		},
		Defaults: conntrack.DefaultTimeouts(), RegisterSize: 65536, Mark: 0x63003000,
		Notes: []string{"clock: boot 0badcafe +1m0s = 2026-01-02T03:04:05Z"},
	}
}

// in runs fn in the host's namespace.
func in(t *testing.T, h *netnstest.Host, fn func() error) {
	t.Helper()
	if err := h.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func nft(t *testing.T, h *netnstest.Host, input string, args ...string) string {
	t.Helper()
	out, err := h.Pipe(context.Background(), input, "nft", args...)
	if err != nil {
		t.Fatalf("nft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func read(t *testing.T, h *netnstest.Host) (installed *rules.Installed) {
	t.Helper()
	in(t, h, func() (err error) { installed, err = rules.Read(); return err })
	return installed
}

func TestTableReadsWell(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	got := nft(t, h, "", "list", "table", "inet", "curfew")

	golden := filepath.Join("testdata", "table.nft")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("nft lists\n%s\nwant\n%s", got, want)
	}
}

// A change by hand is told from one of ours.
func TestSound(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	sound := func(when string, want bool) {
		t.Helper()
		in(t, h, func() error {
			installed, err := rules.Read()
			if err != nil {
				return err
			}
			if got, err := installed.Sound(); err != nil || got != want {
				t.Errorf("%s: sound %v, %v", when, got, err)
			}
			return nil
		})
	}
	c := config(t)
	in(t, h, func() error { return rules.Apply(c) })
	sound("installed", true)
	in(t, h, func() error { return rules.Beat(1, time.Now()) })
	sound("after a heartbeat", true)
	listed := nft(t, h, "", "list", "ruleset")
	nft(t, h, "flush ruleset\n"+listed, "-f", "-")
	sound("saved and loaded again", false) // what nft makes of it is not the same to the byte
	in(t, h, func() error { return rules.Apply(c) })
	sound("applied to what was loaded", true)
	nft(t, h, "", "flush", "chain", "inet", "curfew", "input")
	sound("after a chain was flushed", false)
	in(t, h, func() error { return rules.Apply(c) })
	sound("installed again", true)
	if got := nft(t, h, "", "list", "chain", "inet", "curfew", "input"); !strings.Contains(got, "@inbound-by-port") {
		t.Errorf("applying again has not put the chain back:\n%s", got)
	}
}

// What a dry run prints is what nft would.
func TestText(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	got, want := blocks(rules.Text(config(t))), blocks(nft(t, h, "", "list", "table", "inet", "curfew"))
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("got\n%s\nwant\n%s", got[min(i, len(got)-1)], want[i])
		}
	}
	other := netnstest.NewHost(t, "other")
	nft(t, other, rules.Text(config(t)), "-f", "-")
	if got := read(t, other); !got.Same(config(t).Policies) {
		t.Errorf("policies of the text: %+v", got.Policies)
	}
}

// blocks are the parts of a table, in an order of their own.
func blocks(table string) []string {
	list := strings.Split(strings.TrimSuffix(table, "}\n"), "\n\n")
	for i := range list {
		list[i] = strings.Join(strings.Fields(strings.TrimPrefix(list[i], "table inet curfew {\n")), " ")
		if strings.HasPrefix(list[i], "chain state {") {
			list[i] = "" // its note is of what has been installed
		}
	}
	slices.Sort(list)
	return list
}

// People save their rules with `nft list ruleset` and load them at boot.
func TestTableLoadsAgain(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	listed := nft(t, h, "", "list", "ruleset")
	nft(t, h, listed, "-c", "-f", "-")

	nft(t, h, "flush ruleset\n"+listed, "-f", "-")
	if again := nft(t, h, "", "list", "ruleset"); again != listed {
		t.Errorf("loaded again, nft lists\n%s\nwant\n%s", again, listed)
	}
	if got := read(t, h); !reflect.DeepEqual(byName(got.Policies), byName(config(t).Policies)) {
		t.Errorf("policies after loading again: %+v", got.Policies)
	}
}

func byName(policies []ctpolicy.Policy) map[string]ctpolicy.Policy {
	m := map[string]ctpolicy.Policy{}
	for _, p := range policies {
		m[p.Name] = p
	}
	return m
}

func TestReadBack(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	c := config(t)
	in(t, h, func() error { return rules.Apply(c) })
	got := read(t, h)
	if !reflect.DeepEqual(byName(got.Policies), byName(c.Policies)) {
		t.Errorf("policies: %+v", got.Policies)
	}
	if want := map[string][]uint32{"ldap": {601}, "web": {338}, "shop": {1728000}, "partners": {3900}, "ssh": {7201}}; !reflect.DeepEqual(got.Timeouts, want) {
		t.Errorf("timeouts: %v, want %v", got.Timeouts, want)
	}
	if !reflect.DeepEqual(got.Notes, c.Notes) || got.RegisterSize != c.RegisterSize || got.Mark != c.Mark {
		t.Errorf("notes %q, register of %d", got.Notes, got.RegisterSize)
	}
	if got.Reaper.Alive {
		t.Error("a reaper is alive")
	}
}

func TestNotInstalled(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	for name, call := range map[string]func() error{
		"Read":     func() error { _, err := rules.Read(); return err },
		"Beat":     func() error { return rules.Beat(1, time.Now()) },
		"StopBeat": rules.StopBeat,
		"Remove":   rules.Remove,
	} {
		if err := h.Do(call); !errors.Is(err, rules.ErrNotInstalled) {
			t.Errorf("%s: %v, want ErrNotInstalled", name, err)
		}
	}
}

func TestForeignTable(t *testing.T) {
	mustLeaveAlone(t, "mine", rules.ErrForeign)
}

func TestOtherVersionsTable(t *testing.T) {
	mustLeaveAlone(t, "curfew table, format 2", rules.ErrFormat)
}

// mustLeaveAlone makes a table of our name with a note.
func mustLeaveAlone(t *testing.T, note string, want error) {
	t.Helper()
	h := netnstest.NewHost(t, "host")
	nft(t, h, `table inet curfew { chain about { counter comment "`+note+`"; }; set alive { type inet_proto; flags timeout; }; }`, "-f", "-")
	before := nft(t, h, "", "list", "ruleset")
	for name, call := range map[string]func() error{
		"Read":   func() error { _, err := rules.Read(); return err },
		"Apply":  func() error { return rules.Apply(config(t)) },
		"Remove": rules.Remove,
	} {
		if err := h.Do(call); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if after := nft(t, h, "", "list", "ruleset"); after != before {
		t.Errorf("the foreign table was changed:\n%s", after)
	}
}

func TestApplyByDifference(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	c := config(t)
	in(t, h, func() error { return rules.Apply(c) })
	nft(t, h, `table inet other { chain c { counter; }; }`, "-f", "-")
	nft(t, h, "add element inet curfew flows4 { 10.0.0.1 . 1 . 10.0.0.2 . 389 timeout 1h }", "-f", "-")
	handle := func(object string) string {
		for line := range strings.Lines(nft(t, h, "", "-a", "list", "table", "inet", "curfew")) {
			if strings.Contains(line, object+" {") {
				return strings.TrimSpace(line)
			}
		}
		return ""
	}
	before := map[string]string{}
	for _, o := range []string{"counter ldap-reset", "ct timeout ldap-601s", "set flows4"} {
		before[o] = handle(o)
	}

	c.Policies = c.Policies[:2]
	c.Policies[0].Idle = 20 * time.Minute
	c.Policies[1] = ctpolicy.Policy{Name: "web-2", Ports: ports(t, "8005"), MaxAge: time.Minute}
	c.Notes = []string{"another"}
	in(t, h, func() error { return rules.Apply(c) })

	got := read(t, h)
	if !reflect.DeepEqual(byName(got.Policies), byName(c.Policies)) {
		t.Errorf("policies: %+v", got.Policies)
	}
	if want := []uint32{601, 1201}; !sameSet(got.Timeouts["ldap"], want) {
		t.Errorf("ct timeout objects of ldap: %v, want both %v", got.Timeouts["ldap"], want)
	}
	for o, old := range before {
		if now := handle(o); now != old {
			t.Errorf("%s was replaced: %q, then %q", o, old, now)
		}
	}
	listed := nft(t, h, "", "list", "ruleset")
	for _, gone := range []string{"web-reset", "web-track", "ssh-", "8000"} {
		if strings.Contains(listed, gone) {
			t.Errorf("%s is still there:\n%s", gone, listed)
		}
	}
	if strings.Contains(listed, "10.0.0.1 . 1") {
		t.Error("the register holds a flow with the limit of before")
	}
	for _, there := range []string{"table inet other", "another"} {
		if !strings.Contains(listed, there) {
			t.Errorf("%s is missing:\n%s", there, listed)
		}
	}
}

// Without a change the register keeps its flows.
func TestApplyTheSameAgain(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	nft(t, h, "add element inet curfew flows4 { 10.0.0.1 . 1 . 10.0.0.2 . 389 timeout 1h }", "-f", "-")
	in(t, h, func() error { return rules.Apply(config(t)) })
	if listed := nft(t, h, "", "list", "set", "inet", "curfew", "flows4"); !strings.Contains(listed, "10.0.0.1 . 1 . 10.0.0.2 . 389") {
		t.Errorf("the register lost a flow:\n%s", listed)
	}
}

func sameSet(a, b []uint32) bool {
	count := map[uint32]int{}
	for _, v := range a {
		count[v]++
	}
	for _, v := range b {
		count[v]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

func TestRegisterSizeStays(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	c := config(t)
	in(t, h, func() error { return rules.Apply(c) })
	c.RegisterSize = 10
	if err := h.Do(func() error { return rules.Apply(c) }); !errors.Is(err, rules.ErrRegisterSize) {
		t.Errorf("error %v, want ErrRegisterSize", err)
	}
}

func TestHeartbeat(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	c := config(t)
	c.Adopting = true
	in(t, h, func() error { return rules.Apply(c) })
	if r := read(t, h).Reaper; !r.Alive || r.PID != 0 {
		t.Errorf("while adopting: %+v", r)
	}
	for range 2 {
		in(t, h, func() error { return rules.Beat(os.Getpid(), time.Now()) })
		if r := read(t, h).Reaper; !r.Running() || r.PID != os.Getpid() || r.Left < rules.Heartbeat/2 {
			t.Errorf("after a beat: %+v", r)
		}
	}
	in(t, h, func() error { return rules.Apply(c) })
	in(t, h, func() error { return rules.Beat(1<<30, time.Now()) })
	if r := read(t, h).Reaper; !r.Alive || r.Running() {
		t.Errorf("with the heartbeat of a process that is gone: %+v", r)
	}
	for range 2 {
		in(t, h, rules.StopBeat)
		if r := read(t, h).Reaper; r.Alive {
			t.Errorf("after the last beat: %+v", r)
		}
	}
}

func TestNotesStay(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	in(t, h, func() error { return rules.AddNote("more") })
	in(t, h, func() error { return rules.Apply(config(t)) })
	first := config(t).Notes[0]
	if got, want := read(t, h).Notes, []string{first, "more", first}; !reflect.DeepEqual(got, want) {
		t.Errorf("notes %q, want %q", got, want)
	}
}

func TestRemove(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	nft(t, h, `table inet other { chain c { counter; }; }`, "-f", "-")
	before := nft(t, h, "", "list", "ruleset")
	in(t, h, func() error { return rules.Apply(config(t)) })
	in(t, h, rules.Remove)
	if after := nft(t, h, "", "list", "ruleset"); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}

// Every port of many ranges reaches the kernel, although a message has room for few.
func TestManyPorts(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	p := ctpolicy.Policy{Name: "odd", MaxAge: time.Hour}
	for port := 1; port < 6000; port += 2 {
		p.Ports = append(p.Ports, ctpolicy.PortRange{First: uint16(port), Last: uint16(port)})
	}
	c := config(t)
	c.Policies = []ctpolicy.Policy{p}
	in(t, h, func() error { return rules.Apply(c) })
	if got := read(t, h).Policies; !reflect.DeepEqual(got, c.Policies) {
		t.Errorf("%d ranges came back of %d", len(got[0].Ports), len(p.Ports))
	}
}

func TestFeatures(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	for _, f := range rules.Features() {
		if err := h.Do(f.Probe); err != nil {
			t.Error(err)
		}
	}
	if left := nft(t, h, "", "list", "ruleset"); left != "" {
		t.Errorf("probes left behind:\n%s", left)
	}
}

func TestLabelUsers(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	nft(t, h, `
table inet mine { chain sets { ct label set 127; }; chain asks { ct label 126 accept; }; chain harmless { ct label set 5; meta mark set 1; }; }
table ip none { chain c { counter; }; }`, "-f", "-")
	var users []string
	in(t, h, func() (err error) { users, err = rules.LabelUsers(); return err })
	if want := []string{"inet mine sets", "inet mine asks"}; !reflect.DeepEqual(users, want) {
		t.Errorf("users %q, want %q", users, want)
	}
}
