package e2e

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// heartbeat is how long the fallback sleeps after a reaper has died.
const heartbeat = 10 * time.Second

// covered are the flags for all ports that a topology listens on.
var covered = []string{"--port", "8081-8083", "--max-age", limit.String()}

func mustBeEmpty(t *testing.T, h *netnstest.Host, set string) {
	t.Helper()
	if list := listSet(t, h, set); strings.Contains(list, "elements") {
		t.Errorf("something is in the set:\n%s", list)
	}
}

// restart starts a reaper again, and tells between which moments it began to run.
func restart(t *testing.T, h *netnstest.Host) (p *process, running span) {
	t.Helper()
	from := time.Now()
	p = start(t, h, covered...)
	return p, span{from, time.Now()}
}

// mustEndUpon waits for both ends, and checks that they closed within late of a moment, and at the limit at the earliest.
func (k *talk) mustEndUpon(t *testing.T, what string, moment time.Time) {
	t.Helper()
	for name, end := range k.ends() {
		if err := end.WaitEnd(time.Until(moment) + patience); err != nil && end.Alive() {
			t.Errorf("%s, %s: still open %s after %s", k.name, name, time.Since(moment), what)
			continue
		}
		if d := end.EndedAt().Sub(moment); d > late {
			t.Errorf("%s, %s: ended %s after %s (%v)", k.name, name, d, what, end.Err())
		}
		if age := end.EndedAt().Sub(k.born.from); age < limit {
			t.Errorf("%s, %s: ended early, after %s (%v)", k.name, name, age, end.Err())
		}
	}
}

// TestRegisterSleeps shows that the kernel's register stays empty while a reaper is alive, and takes over at once when
// it is told to stop.
func TestRegisterSleeps(t *testing.T) {
	t.Parallel()
	top := topologies(t)["both here"](t)
	top.listen(t)
	p := start(t, top.curfew, covered...)
	first := top.talks(t, "first", 20000, senders...)
	looked := 0
	var last []*talk
	for i := uint16(0); time.Since(first[0].born.to) < limit+time.Second; i++ {
		last = top.talks(t, "then", 21000+100*i, append(silent, senders...)...)
		if i%2 == 0 {
			for _, k := range last {
				k.close()
			}
		}
		mustBeEmpty(t, top.curfew, "flows4")
		mustBeEmpty(t, top.curfew, "flows6")
		looked++
		time.Sleep(5 * pace)
	}
	t.Logf("looked %d times", looked)
	for _, k := range first {
		k.mustEnd(t, limit)
	}
	last = append(last, top.talks(t, "last", 20100, senders...)...)
	if !strings.Contains(listSet(t, top.curfew, "alive"), fmt.Sprintf("reaper pid %d", p.cmd.Process.Pid)) {
		t.Errorf("the heartbeat does not say whose it is:\n%s", listSet(t, top.curfew, "alive"))
	}
	p.stop()
	stopped := time.Now()
	mustBeEmpty(t, top.curfew, "alive")
	for _, set := range []string{"flows4", "flows6"} {
		eventually(t, "flows in the register", func() bool { return strings.Contains(listSet(t, top.curfew, set), "elements") })
	}
	for _, k := range last {
		for name, end := range k.sending() {
			if err := end.WaitEnd(time.Until(stopped.Add(limit + late))); err != nil {
				t.Errorf("%s, %s: still open one limit after the reaper stopped", k.name, name)
			}
		}
	}
}

// TestKillInsideLead kills the reaper when everything that is open is pinned. The rule alone goes on.
func TestKillInsideLead(t *testing.T) {
	inEach(t, func(t *testing.T, top *topology) {
		p := start(t, top.curfew, covered...)
		kinds := append(append([]talk{}, senders...), silent[0], silent[0], silent[0])
		var all []*talk
		begin := time.Now()
		for i := range 3 {
			sleepUntil(begin.Add(time.Duration(i) * limit / 12))
			all = append(all, top.talks(t, fmt.Sprintf("at %d/12 of the limit", i), 20000+uint16(100*i), kinds...)...)
		}
		// A pin is sent a whole second before the limit.
		sleepUntil(all[len(all)-1].born.to.Add(limit - time.Second + 2*early))
		p.signal(syscall.SIGKILL)
		mustAllBeAlive(t, pairs(all), "before the limit")
		later := top.talks(t, "after the kill", 30000, append(silent, senders...)...)

		// What sends is reset at its limit; what is silent stays, and is reset when it sends.
		r := &record{}
		var idle, spoken []*talk
		for i, k := range all {
			if len(k.sending()) > 0 {
				k.mustEndSending(t, limit)
				r.end(k, limit)
				continue
			}
			switch i % len(kinds) {
			case 3:
				idle = append(idle, k)
			case 4:
				k.byClient = true
				spoken = append(spoken, k)
			case 5:
				k.byServer = true
				spoken = append(spoken, k)
			}
		}
		t.Logf("without a reaper ended at most %s late", r.latest)
		sleepUntil(all[len(all)-1].born.to.Add(limit + late))
		mustAllBeAlive(t, pairs(append(idle, spoken...)), "although it is silent")
		for _, k := range spoken {
			for name, end := range k.sending() {
				asked := time.Now()
				if _, err := end.Write([]byte("x")); err != nil {
					t.Errorf("%s: write: %v", k.name, err)
				}
				if err := end.WaitEnd(late); err != nil {
					t.Errorf("%s: the %s sends after the limit and is not reset", k.name, name)
				} else {
					r.reuse(end.EndedAt().Sub(asked))
				}
			}
		}
		t.Logf("a late packet is answered within %s", r.port)

		mustAllBeAlive(t, pairs(later), "although it is younger")
		_, running := restart(t, top.curfew)
		for _, k := range append(idle, all...) {
			k.mustEndUpon(t, "the restart", running.to)
		}
		for _, k := range later {
			k.mustEnd(t, limit)
		}
	})
}

// TestKillAtRandom kills the reaper again and again, and starts it again at once.
func TestKillAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	inEach(t, func(t *testing.T, top *topology) {
		random := rand.New(rand.NewPCG(seed, 0))
		p := start(t, top.curfew, covered...)
		var talks []*talk
		var opener sync.WaitGroup
		done := make(chan struct{})
		opener.Go(func() { talks = top.openMixed(t, done) })
		var down []span
		for range 10 {
			time.Sleep(time.Duration(random.Int64N(int64(limit / 4))))
			killed := time.Now()
			p.signal(syscall.SIGKILL)
			var running span
			p, running = restart(t, top.curfew)
			down = append(down, span{killed, running.to})
		}
		close(done)
		opener.Wait()
		var latest time.Duration
		for _, k := range talks {
			due := k.born.to.Add(limit)
			for _, d := range down {
				// What was due while no reaper was there, or was just being ended, is up to the next one.
				if d.from.Before(due.Add(late)) && d.to.After(due) {
					due = d.to
				}
			}
			k.mustEndUpon(t, "it was due", due)
			for _, end := range k.ends() {
				if !end.Alive() {
					latest = max(latest, end.EndedAt().Sub(due))
				}
			}
		}
		t.Logf("%d connections, ended at most %s after they were due", len(talks), latest)
		p.stop()
	})
}

// openMixed opens connections of all kinds, one after the other, until done is closed.
func (top *topology) openMixed(t *testing.T, done <-chan struct{}) (talks []*talk) {
	kinds := append(append([]talk{}, senders...), silent...)
	for i := 0; ; i++ {
		w, k := top.ways()[i%3], kinds[(i/3)%len(kinds)]
		p, err := top.tryConnect(w, netnstest.FromPort(20000+uint16(i)))
		if err != nil {
			t.Errorf("connect: %v", err)
		} else {
			k.pair, k.way = p, w
			k.name = fmt.Sprintf("%s, port %d", w.name, 20000+i)
			for name, end := range k.sending() {
				k.name += ", " + name + " sends"
				end.Busy(pace)
			}
			talks = append(talks, &k)
		}
		select {
		case <-done:
			return talks
		case <-time.After(2 * pace):
		}
	}
}

// TestReaperNeverReturns kills the reaper for good, before anything is pinned: the fallback wakes when the heartbeat
// lapses, and takes the time from there. It waits so long that all topologies share the wait.
func TestReaperNeverReturns(t *testing.T) {
	t.Parallel()
	type story struct {
		*topology
		lapse time.Time
		open  []*talk
		after []*talk
	}
	var stories []*story
	for name, build := range topologies(t) {
		s := &story{topology: build(t)}
		s.listen(t)
		stories = append(stories, s)
		p := start(t, s.curfew, covered...)
		s.open = s.talks(t, name+", before the kill", 20000, senders...)
		sleepUntil(s.open[0].born.from.Add(limit / 6))
		p.signal(syscall.SIGKILL)
		killed := time.Now()
		s.open = append(s.open, s.talks(t, name+", after the kill", 21000, senders...)...)
		s.lapse = heartbeatEnd(t, s.curfew)
		if left := s.lapse.Sub(killed); left > heartbeat || left < heartbeat/2 {
			t.Errorf("%s: the heartbeat lasts %s after the kill", name, left)
		}
	}
	for _, s := range stories {
		sleepUntil(s.lapse.Add(early))
		mustBeEmpty(t, s.curfew, "alive")
		mustAllBeAlive(t, pairs(s.open), "while the fallback sleeps")
		s.after = s.talks(t, "with the fallback awake", 22000, senders...)
	}
	var latest time.Duration
	for _, s := range stories {
		for _, k := range s.open {
			for name, end := range k.sending() {
				due := s.lapse.Add(limit)
				if err := end.WaitEnd(time.Until(due) + patience); err != nil && end.Alive() {
					t.Errorf("%s, %s: still open %s after the heartbeat lapsed", k.name, name, time.Since(s.lapse))
				} else if d := end.EndedAt().Sub(due); d > late {
					t.Errorf("%s, %s: ended one limit and %s after the heartbeat lapsed", k.name, name, d)
				} else {
					latest = max(latest, d)
				}
			}
		}
		for _, k := range s.after {
			k.mustEndSending(t, limit)
		}
	}
	t.Logf("ended at most one limit and %s after the heartbeat lapsed", latest)
}

var expires = regexp.MustCompile(`expires (\S+)`)

// heartbeatEnd is when the heartbeat lapses.
func heartbeatEnd(t *testing.T, h *netnstest.Host) time.Time {
	t.Helper()
	set := listSet(t, h, "alive")
	read := time.Now()
	found := expires.FindStringSubmatch(set)
	if found == nil {
		t.Fatalf("no heartbeat:\n%s", set)
	}
	left, err := time.ParseDuration(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return read.Add(left)
}

// TestReaperStopped has the process held up for longer than the limit.
func TestReaperStopped(t *testing.T) {
	const pause = 4 * time.Second
	inEach(t, func(t *testing.T, top *topology) {
		p := start(t, top.curfew, covered...)
		kinds := append(append([]talk{}, silent...), senders...)
		pinned := top.talks(t, "long before", 20000, kinds...)
		sleepUntil(pinned[0].born.from.Add(limit / 3))
		unpinned := top.talks(t, "before", 21000, kinds...)
		sleepUntil(pinned[len(pinned)-1].born.to.Add(limit - time.Second + 2*early))
		if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		held := time.Now()
		for _, k := range pinned {
			k.mustEndSending(t, limit)
		}
		sleepUntil(held.Add(pause - time.Second))
		young := top.talks(t, "meanwhile", 22000, kinds...)
		sleepUntil(held.Add(pause))
		for _, k := range append(unpinned, pinned...) {
			if len(k.sending()) == 0 {
				k.mustBeAlive(t, "although nobody ends it")
			}
		}
		again := time.Now()
		if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for _, k := range append(unpinned, pinned...) {
			k.mustEndUpon(t, "the reaper went on", again)
		}
		for _, k := range young {
			k.mustEnd(t, limit)
		}
		p.stop()
	})
}

// TestOneReaper starts a second reaper beside the first one, which goes on undisturbed.
func TestOneReaper(t *testing.T) {
	t.Parallel()
	top := topologies(t)["both here"](t)
	top.listen(t)
	p := start(t, top.curfew, covered...)
	open := top.talks(t, "before", 20000, append(silent, senders...)...)
	rules := tool(t, top.curfew, "", "nft", "-s", "list", "table", "inet", "curfew")
	second := curfew(t, top.curfew, "run", "--port", "8081-8083", "--max-age", "1s")
	if second.code != 1 || !strings.Contains(second.stderr, fmt.Sprintf("pid %d", p.cmd.Process.Pid)) {
		t.Errorf("a second curfew run: exit code %d, want 1 and the pid %d\n%s", second.code, p.cmd.Process.Pid, second.stderr)
	}
	if now := tool(t, top.curfew, "", "nft", "-s", "list", "table", "inet", "curfew"); now != rules {
		t.Errorf("a second curfew run has changed the rules:\n%s\nbefore:\n%s", now, rules)
	}
	for _, k := range open {
		k.mustEnd(t, limit)
	}
	p.signal(syscall.SIGKILL)
	if !strings.Contains(listSet(t, top.curfew, "alive"), fmt.Sprintf("reaper pid %d", p.cmd.Process.Pid)) {
		t.Error("the heartbeat of the killed reaper is gone")
	}
	restart(t, top.curfew)
}
