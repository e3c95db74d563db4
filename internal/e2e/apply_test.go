package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// free is how long after the end of a connection its source port may be refused.
const free = 2 * time.Second

// inEach runs a test in each topology, side by side: they share nothing, and mostly wait.
func inEach(t *testing.T, test func(t *testing.T, top *topology)) {
	t.Parallel()
	for name, build := range topologies(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := build(t)
			top.listen(t)
			// A client may leave TIME_WAIT after a second, as over loopback.
			if err := top.client.SetSysctl("net.ipv4.tcp_tw_reuse", "1"); err != nil {
				t.Fatal(err)
			}
			test(t, top)
		})
	}
}

// A way is how a client reaches a server.
type way struct {
	name    string
	server  *netnstest.Server
	address netip.Addr
}

func (top *topology) ways() []way {
	return []way{
		{"IPv4", top.v4, top.address4},
		{"IPv6", top.v6, top.address6},
		{"IPv4 on a dual-stack socket", top.d, top.address4},
	}
}

// tryConnect is connect for goroutines, which must not end the test.
func (top *topology) tryConnect(w way, opts netnstest.DialOptions) (*pair, error) {
	from := time.Now()
	client, err := top.client.Connect("tcp", netip.AddrPortFrom(w.address, w.server.Port()).String(), opts)
	if err != nil {
		return nil, err
	}
	to := time.Now()
	server, err := w.server.Peer(client, patience)
	if err != nil {
		return nil, err
	}
	return &pair{fmt.Sprint(client), client, server, span{from, to}}, nil
}

// A talk is a connection, and who sends on it.
type talk struct {
	*pair
	when               string // it was opened
	way                way
	byClient, byServer bool
}

var senders = []talk{{byClient: true, byServer: true}, {byClient: true}, {byServer: true}}

// silent is a connection on which nobody sends.
var silent = []talk{{}}

// talks opens a connection each way for each kind of traffic, from source ports that start at base.
func (top *topology) talks(t *testing.T, when string, base uint16, kinds ...talk) []*talk {
	t.Helper()
	var talks []*talk
	for _, w := range top.ways() {
		for _, k := range kinds {
			k.when, k.way = when, w
			k.pair = connect(t, top.client, w.server, w.address, netnstest.FromPort(base+uint16(len(talks))))
			k.name = fmt.Sprintf("%s, opened %s, port %d", w.name, when, base+uint16(len(talks)))
			for name, end := range k.sending() {
				k.name += ", " + name + " sends"
				end.Busy(pace)
			}
			talks = append(talks, &k)
		}
	}
	return talks
}

// sending are the ends that send.
func (k *talk) sending() map[string]*netnstest.Conn {
	ends := map[string]*netnstest.Conn{}
	if k.byClient {
		ends["client"] = k.client
	}
	if k.byServer {
		ends["server"] = k.server
	}
	return ends
}

// mustEndSending waits for the ends that send, and checks when and how they closed.
func (k *talk) mustEndSending(t *testing.T, limit time.Duration) {
	t.Helper()
	for name, end := range k.sending() {
		k.mustEndAt(t, name, end, limit)
		if err := end.Err(); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("%s, %s: saw %v, want a reset", k.name, name, err)
		}
	}
}

// A record keeps the greatest delays, for the log.
type record struct {
	mu     sync.Mutex
	latest time.Duration // of an end, after its limit
	port   time.Duration // until the source port could be used again
}

func (r *record) end(k *talk, limit time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, end := range k.sending() {
		if !end.Alive() {
			r.latest = max(r.latest, end.EndedAt().Sub(k.born.to)-limit)
		}
	}
}

func (r *record) reuse(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.port = max(r.port, d)
}

// mustReuse connects again from the source port of a connection that has just ended.
func (top *topology) mustReuse(t *testing.T, old *talk, r *record) *talk {
	t.Helper()
	ended := time.Now()
	port := netnstest.FromPort(old.client.LocalAddr().Port())
	for {
		port.Timeout = max(time.Millisecond, time.Until(ended.Add(free)))
		p, err := top.tryConnect(old.way, port)
		if err == nil {
			r.reuse(time.Since(ended))
			p.name = old.name + ", and again from this port"
			p.busy()
			return &talk{p, "again", old.way, true, true}
		}
		if time.Since(ended) > free {
			t.Errorf("%s: the port is still refused %s after the end: %v", old.name, free, err)
			return nil
		}
		time.Sleep(pace)
	}
}

// closings are how a program ends a connection. Each checks that both ends see what they always see.
var closings = []struct {
	name  string
	close func(t *testing.T, p *pair)
}{
	{"closed by the client", func(t *testing.T, p *pair) { mustClose(t, p, p.client, p.server) }},
	{"closed by the server", func(t *testing.T, p *pair) { mustClose(t, p, p.server, p.client) }},
	{"half-closed by the client", func(t *testing.T, p *pair) { mustHalfClose(t, p, p.client, p.server) }},
	{"half-closed by the server", func(t *testing.T, p *pair) { mustHalfClose(t, p, p.server, p.client) }},
	{"reset by the client", func(t *testing.T, p *pair) { mustReset(t, p, p.client, p.server) }},
	{"reset by the server", func(t *testing.T, p *pair) { mustReset(t, p, p.server, p.client) }},
}

// payload is more than a socket's first window.
var payload = make([]byte, 300_000)

func mustSend(t *testing.T, p *pair, from, to *netnstest.Conn) {
	t.Helper()
	want := to.Received() + int64(len(payload))
	if _, err := from.Write(payload); err != nil {
		t.Errorf("%s: write: %v", p.name, err)
	}
	for deadline := time.Now().Add(limit); to.Received() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) || !to.Alive() {
			t.Errorf("%s: %d bytes missing (%v)", p.name, want-to.Received(), to.Err())
			return
		}
	}
}

// mustSee waits for the end of a connection and compares its cause.
func mustSee(t *testing.T, p *pair, end *netnstest.Conn, want error) {
	t.Helper()
	if err := end.WaitEnd(late); err != nil {
		t.Errorf("%s: %v", p.name, err)
	} else if !errors.Is(end.Err(), want) {
		t.Errorf("%s: %s saw %v, want %v", p.name, end, end.Err(), want)
	}
}

func mustClose(t *testing.T, p *pair, first, other *netnstest.Conn) {
	mustSend(t, p, first, other)
	mustSend(t, p, other, first)
	if err := first.CloseWrite(); err != nil {
		t.Errorf("%s: close: %v", p.name, err)
	}
	mustSee(t, p, other, io.EOF)
	mustSee(t, p, first, io.EOF)
}

// mustHalfClose goes on sending in the other direction for a while.
func mustHalfClose(t *testing.T, p *pair, first, other *netnstest.Conn) {
	other.AllowHalfClose()
	mustSend(t, p, first, other)
	if err := first.CloseWrite(); err != nil {
		t.Errorf("%s: close: %v", p.name, err)
	}
	for range 10 {
		time.Sleep(pace)
		mustSend(t, p, other, first)
	}
	if err := other.CloseWrite(); err != nil {
		t.Errorf("%s: close the other direction: %v", p.name, err)
	}
	mustSee(t, p, first, io.EOF)
}

func mustReset(t *testing.T, p *pair, first, other *netnstest.Conn) {
	mustSend(t, p, first, other)
	mustSend(t, p, other, first)
	if err := first.Reset(); err != nil {
		t.Errorf("%s: reset: %v", p.name, err)
	}
	mustSee(t, p, other, syscall.ECONNRESET)
}

// listSet is a set of the table as nft shows it.
func listSet(t *testing.T, h *netnstest.Host, name string) string {
	t.Helper()
	return tool(t, h, "", "nft", "list", "set", "inet", "curfew", name)
}

// mustApply runs apply and checks what must be so after every apply.
func mustApply(t *testing.T, h *netnstest.Host, flags ...string) string {
	t.Helper()
	out := succeed(t, h, append([]string{"apply"}, flags...)...)
	for _, text := range []string{"A reaper adds the idle ones, both ends", "curfew run", "curfew reap"} {
		if !strings.Contains(out, text) {
			t.Errorf("apply does not say %q, what a reaper would add:\n%s", text, out)
		}
	}
	if set := listSet(t, h, "alive"); strings.Contains(set, "elements") {
		t.Errorf("the heartbeat is there although no reaper is:\n%s", set)
	}
	return out
}

// TestApplyAlone shows what the kernel does without a process of ours: every end that sends is reset at its limit,
// connections that end before that are left alone, and the source port of each is free again.
func TestApplyAlone(t *testing.T) {
	inEach(t, func(t *testing.T, top *topology) {
		kinds := append([]talk{}, senders...)
		for range closings {
			kinds = append(kinds, silent...)
		}
		before := top.talks(t, "before", 20000, kinds...)
		from := time.Now()
		during := make(chan []*talk)
		done := make(chan struct{})
		go func() { during <- top.openUntil(t, done, 21000) }()
		mustApply(t, top.curfew, "--port", "8081-8083", "--max-age", limit.String())
		close(done)
		for _, k := range before {
			k.born = at(from)
		}
		all := append(before, <-during...)
		all = append(all, top.talks(t, "after", 22000, kinds...)...)

		var stories sync.WaitGroup
		records := map[string]*record{"before": {}, "during apply": {}, "after": {}, "again": {}}
		closed := 0
		for _, k := range all {
			finish := func() { k.mustEndSending(t, limit) }
			if len(k.sending()) == 0 {
				c := closings[closed%len(closings)]
				k.name += ", " + c.name
				finish = func() { c.close(t, k.pair) }
				closed++
			}
			stories.Go(func() {
				finish()
				records[k.when].end(k, limit)
				k.close()
				if again := top.mustReuse(t, k, records[k.when]); again != nil {
					again.mustEndSending(t, limit)
					records["again"].end(again, limit)
				}
			})
		}
		stories.Wait()
		for when, r := range records {
			t.Logf("opened %s: ended at most %s late, port free after at most %s", when, r.latest, r.port)
		}
	})
}

// openUntil opens busy connections until done is closed.
func (top *topology) openUntil(t *testing.T, done <-chan struct{}, base uint16) (talks []*talk) {
	for {
		for _, w := range top.ways() {
			port := base + uint16(len(talks))
			p, err := top.tryConnect(w, netnstest.FromPort(port))
			if err != nil {
				t.Errorf("connect while apply runs: %v", err)
				continue
			}
			p.busy()
			p.name = fmt.Sprintf("%s, opened during apply, port %d", w.name, port)
			talks = append(talks, &talk{p, "during apply", w, true, true})
		}
		select {
		case <-done:
			return talks
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestApplyKnowsAges has birth times recorded before curfew comes: then ages are true ones.
func TestApplyKnowsAges(t *testing.T) {
	inEach(t, func(t *testing.T, top *topology) {
		tool(t, top.curfew, `table inet other {
			chain input { type filter hook input priority 0; ct state new counter; }
			chain output { type filter hook output priority 0; ct state new counter; }
		}`, "nft", "-f", "-")
		if err := top.curfew.SetSysctl("net.netfilter.nf_conntrack_timestamp", "1"); err != nil {
			t.Fatal(err)
		}
		overdue := top.talks(t, "long ago", 20000, append(silent, senders...)...)
		sleepUntil(overdue[0].born.to.Add(limit - time.Second))
		old := top.talks(t, "a while ago", 21000, senders...)
		sleepUntil(overdue[len(overdue)-1].born.to.Add(limit + late))
		mustAllBeAlive(t, pairs(overdue), "although nothing is installed")

		from := time.Now()
		out := mustApply(t, top.curfew, "--port", "8081-8083", "--max-age", limit.String())
		if want := fmt.Sprintf("%d open connections pinned, 0 of them new to conntrack; %d ended", len(old), len(overdue)); !strings.Contains(out, want) {
			t.Errorf("apply does not say %q:\n%s", want, out)
		}
		r := &record{}
		for _, k := range overdue {
			k.born = at(from.Add(-limit)) // due at once
			k.mustEnd(t, limit)
			r.end(k, limit)
		}
		for _, k := range old {
			k.mustEndSending(t, limit)
			r.end(k, limit)
		}
		t.Logf("ended at most %s late", r.latest)
	})
}

func pairs(talks []*talk) (pairs []*pair) {
	for _, k := range talks {
		pairs = append(pairs, k.pair)
	}
	return pairs
}

// TestApplyRegisterFull has more connections than the register holds: those that it does not hold are not limited,
// and not harmed.
func TestApplyRegisterFull(t *testing.T) {
	t.Parallel()
	top := topologies(t)["both here"](t)
	top.listen(t)
	const size = 10
	mustApply(t, top.curfew, "--port", "8081-8083", "--max-age", limit.String(), "--register-size", strconv.Itoa(size))
	var all, held, rest []*pair
	for set, w := range map[string]way{"flows4": top.ways()[0], "flows6": top.ways()[1]} {
		var some []*pair
		for i := range uint16(3 * size) {
			some = append(some, connect(t, top.client, w.server, w.address, netnstest.FromPort(20000+i)).busy())
		}
		all = append(all, some...)
		rest = append(rest, connect(t, top.client, top.uncovered, w.address, netnstest.DialOptions{}).busy())
		// Each has sent by then.
		last := some[len(some)-1]
		eventually(t, "traffic", func() bool { return last.client.Received() > 1 && last.server.Received() > 1 })
		list, count := listSet(t, top.curfew, set), 0
		for _, p := range some {
			if strings.Contains(list, fmt.Sprintf(" . %d . ", p.client.LocalAddr().Port())) {
				held = append(held, p)
				count++
			} else {
				rest = append(rest, p)
			}
		}
		if count != size {
			t.Fatalf("the register holds %d flows, want %d:\n%s", count, size, list)
		}
	}
	sleepUntil(all[0].born.from.Add(limit - early))
	mustAllBeAlive(t, all, "before the limit")
	for _, p := range held {
		for name, end := range p.ends() {
			p.mustEndAt(t, name, end, limit)
		}
		p.mustBeReset(t)
	}
	sleepUntil(all[len(all)-1].born.to.Add(limit + time.Second))
	for _, p := range rest {
		p.mustBeAlive(t, "although the register does not hold it")
		p.mustTalk(t)
	}
}

// TestApplyIdle has an idle limit only: the entry of a connection that pauses expires, and its next packet is a stray.
func TestApplyIdle(t *testing.T) {
	const idle = 2 * time.Second
	inEach(t, func(t *testing.T, top *topology) {
		before := top.talks(t, "before", 20000, silent...)
		out := mustApply(t, top.curfew, "--port", "8081-8083", "--idle", idle.String())
		if want := fmt.Sprintf("%d open connections have a limit that only a reaper can enforce", len(before)); !strings.Contains(out, want) {
			t.Errorf("apply does not say %q:\n%s", want, out)
		}
		alive := pairs(before)
		for base, every := range map[uint16]time.Duration{21000: 500 * time.Millisecond, 22000: idle - late} {
			for _, k := range top.talks(t, "after", base, silent...) {
				k.client.Busy(every)
				alive = append(alive, k.pair)
			}
			for _, k := range top.talks(t, "after", base+100, silent...) {
				k.server.Busy(every)
				alive = append(alive, k.pair)
			}
		}
		byClient := top.talks(t, "after, silent", 24000, silent...)
		byServer := top.talks(t, "after, silent", 25000, silent...)
		// The kernel keeps an entry for a second more than the limit.
		sleepUntil(time.Now().Add(idle + time.Second + early))
		for _, k := range byClient {
			k.mustBeAlive(t, "although it has not sent yet")
			if _, err := k.client.Write([]byte("x")); err != nil {
				t.Errorf("%s: write: %v", k.name, err)
			}
			if err := k.client.WaitEnd(late); err != nil {
				t.Errorf("%s: the client sends after its pause and is not reset", k.name)
			} else if err := k.client.Err(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("%s: the client saw %v, want a reset", k.name, err)
			}
		}
		// Conntrack takes the sender of the first packet that it sees for the client, so the kernel alone does not
		// know this one; a reaper does.
		for _, k := range byServer {
			if _, err := k.server.Write([]byte("x")); err != nil {
				t.Errorf("%s: write: %v", k.name, err)
			}
			alive = append(alive, k.pair)
		}
		for _, p := range alive {
			p.mustTalk(t)
		}
		mustAllBeAlive(t, alive, "although the kernel sees no pause")
	})
}

// TestApplyAgain changes the limit while connections are open.
func TestApplyAgain(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]time.Duration{"longer": limit + time.Second, "shorter": limit - time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := topologies(t)["both here"](t)
			top.listen(t)
			mustApply(t, top.curfew, "--name", "web", "--port", "8081-8083", "--max-age", limit.String())
			first := top.talks(t, "after the first apply", 20000, senders...)
			sleepUntil(first[0].born.from.Add(limit - time.Second/2))
			open := top.talks(t, "before the second apply", 21000, senders...)
			for _, k := range first {
				k.mustEndSending(t, limit)
			}
			count := fallbackCount(t, top.curfew)
			if count < len(first) {
				t.Errorf("the fallback has counted %d packets of %d connections", count, len(first))
			}
			mustApply(t, top.curfew, "--name", "web", "--port", "8081-8083", "--max-age", second.String())
			if now := fallbackCount(t, top.curfew); now < count {
				t.Errorf("the fallback's counter fell from %d to %d", count, now)
			}
			open = append(open, top.talks(t, "after the second apply", 22000, senders...)...)
			for _, k := range open {
				k.mustEndSending(t, second)
			}
			if now := fallbackCount(t, top.curfew); now <= count {
				t.Errorf("the fallback's counter stays at %d", count)
			}
		})
	}
}

// fallbackCount is the value of the counter web-fallback.
func fallbackCount(t *testing.T, h *netnstest.Host) int {
	t.Helper()
	_, rest, _ := strings.Cut(tool(t, h, "", "nft", "list", "counter", "inet", "curfew", "web-fallback"), "packets ")
	count, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return count
}
