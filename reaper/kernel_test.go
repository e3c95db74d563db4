package reaper

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
	"curfew/reaper/sockdiag"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// kernelRules are what these tests need of the rules: room for labels, and the reset of what is pinned and due.
const kernelRules = `
table inet t {
	chain in {
		type filter hook input priority 0
		ct label 99 accept
		tcp flags rst accept
		ct status & 0x400 == 0x400 ct expiration <= 5m meta l4proto tcp reject with tcp reset
	}
}
`

// A hostTable is a Table without rules that could tell something.
type hostTable struct{}

func (hostTable) Beat() error       { return nil }
func (hostTable) Note(string) error { return nil }
func (hostTable) Closed(_, _ netip.AddrPort) (ago time.Duration, ok bool, _ error) {
	return 0, false, nil
}
func (hostTable) Hold(...conntrack.Tuple) error { return nil }

type noChallenger struct{}

func (noChallenger) Send(netip.AddrPort, netip.AddrPort, int) error { return nil }

// hostFlows are both doors to conntrack.
type hostFlows struct {
	*conntrack.Dumper
	*conntrack.Table
}

// A testHost is a host with a real reaper.
type testHost struct {
	t         *testing.T
	h         *netnstest.Host
	r         *Reaper
	flows     hostFlows
	disturbed chan struct{}
	log       lockedLog
}

// lockedLog is read by the test while the reaper writes.
type lockedLog struct {
	mu   sync.Mutex
	text []byte
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	return len(b), nil
}

func newTestHost(t *testing.T, policies ...ctpolicy.Policy) *testHost {
	t.Helper()
	b := &testHost{t: t, h: netnstest.NewHost(t, "a"), disturbed: make(chan struct{}, 1)}
	if err := ctpolicy.Validate(policies); err != nil {
		t.Fatal(err)
	}
	if _, err := b.h.Pipe(t.Context(), kernelRules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	b.must(b.h.SetSysctl("net.netfilter.nf_conntrack_timestamp", "1"))
	var sockets *sockdiag.Conn
	b.must(b.h.Do(func() (err error) { b.flows.Dumper, err = conntrack.Open(1 << 20); return err }))
	b.must(b.h.Do(func() (err error) { b.flows.Table, err = conntrack.OpenTable(); return err }))
	b.must(b.h.Do(func() (err error) { sockets, err = sockdiag.Open(); return err }))
	t.Cleanup(func() {
		sockets.Close()
		b.flows.Dumper.Close()
		b.flows.Table.Close()
		if t.Failed() {
			t.Logf("the reaper's log:\n%s", b.log.text)
		}
	})
	local := func(netip.Addr) bool { return true }
	clock := ctpolicy.SystemClock{}
	b.r = &Reaper{
		Policies: ctpolicy.NewMatcher(policies, local), Flows: b.flows, Sockets: sockets, Table: hostTable{},
		Challenger: noChallenger{}, Clock: clock, Local: local, Disturbed: b.disturbed,
		Judge: &ctpolicy.Judge{
			Timeline: ctpolicy.NewTimeline(clock.Now()), Since: clock.Now().Boot, Defaults: conntrack.DefaultTimeouts(),
		},
		Log: slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	b.r.Init()
	return b
}

func (b *testHost) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// run runs the reaper until the test ends.
func (b *testHost) run() {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.r.Run(ctx) }()
	b.t.Cleanup(func() { cancel(); <-done })
}

// flush takes all entries away and tells the reaper.
func (b *testHost) flush() {
	b.t.Helper()
	b.must(b.h.Run(b.t.Context(), "conntrack", "-F"))
	b.disturb()
}

func (b *testHost) disturb() {
	select {
	case b.disturbed <- struct{}{}:
	default:
	}
}

// A testConn is one connection over loopback.
type testConn struct {
	client, server *netnstest.Conn
	from, to       time.Time // when it began
}

func (b *testHost) connect(s *netnstest.Server, opts netnstest.DialOptions) testConn {
	b.t.Helper()
	c := testConn{from: time.Now()}
	c.client = b.h.Dial(b.t, "tcp", s.Addr().String(), opts)
	c.server = s.Conn(b.t, c.client)
	c.to = time.Now()
	return c
}

func (c *testConn) tuple() conntrack.Tuple {
	return conntrack.Tuple{Src: c.client.LocalAddr(), Dst: c.client.RemoteAddr()}
}

// mustEnd fails unless both ends live for the limit, and at most late longer.
func (b *testHost) mustEnd(c *testConn, name string, limit, late time.Duration) {
	b.t.Helper()
	for _, end := range []*netnstest.Conn{c.client, c.server} {
		if err := end.WaitEnd(time.Until(c.to.Add(limit + 5*time.Second))); err != nil {
			b.t.Errorf("%s: %v", name, err)
			continue
		}
		if at := end.EndedAt(); at.Before(c.from.Add(limit)) || at.After(c.to.Add(limit+late)) {
			b.t.Errorf("%s: ended at age %s, want %s and at most %s more", name, at.Sub(c.from), limit, late)
		}
	}
}

func (b *testHost) eventually(what string, condition func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited for %s", what)
		}
	}
}

func sleepUntil(at time.Time) { time.Sleep(time.Until(at)) }

const (
	kernelLimit = 3 * time.Second
	// kernelLate is how late a connection may end whose entry is taken away right before its deadline.
	kernelLate = 300 * time.Millisecond
)
