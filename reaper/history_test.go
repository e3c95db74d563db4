package reaper

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/reaper/challenge"
	"curfew/reaper/sockdiag"
)

// TestHistories lives through random histories: connections open, talk, pause, half-close, close and use their ports
// again, the reaper dies and comes back, the clock is stepped, calls fail. The kernel checks that nothing ends early and
// nothing is touched that no policy covers. To see one again: HISTORY=<seed> go test -run TestHistories.
func TestHistories(t *testing.T) {
	first, count := uint64(1), uint64(1000)
	if text := os.Getenv("HISTORY"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, count = seed, 1
	} else if testing.Short() {
		count = 200
	}
	for seed := first; seed < first+count; seed++ {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { live(t, seed) })
		if !ok {
			return
		}
	}
}

type history struct {
	*world
	rnd       *rand.Rand
	faulty    bool // calls may fail
	restarts  bool
	steps     bool           // of the clock
	flushes   bool           // the table of entries is lost now and then
	noticed   int            // notes at the last step
	over      bool           // no connection opens any more
	deaf      map[*conn]bool // an end does not answer at once
	offloaded map[*conn]bool
	uncertain map[*conn]bool // its entry does not tell its pause
	story     []string
}

func (h *history) tell(format string, args ...any) {
	h.story = append(h.story, fmt.Sprintf("%9.3fs ", h.boot.Sub(ctpolicy.Instant(100*time.Hour)).Seconds())+fmt.Sprintf(format, args...))
}

func (h *history) chance(percent int) bool { return h.rnd.IntN(100) < percent }

func (h *history) time(limit time.Duration) time.Duration {
	return time.Duration(h.rnd.Int64N(int64(limit)))
}

func live(t *testing.T, seed uint64) {
	h := &history{rnd: rand.New(rand.NewPCG(seed, 3)), deaf: map[*conn]bool{}, offloaded: map[*conn]bool{}, uncertain: map[*conn]bool{}}
	policy := limit(time.Duration(2+h.rnd.IntN(12))*time.Second, 0)
	switch h.rnd.IntN(3) {
	case 0:
		policy.Idle = time.Duration(2+h.rnd.IntN(10)) * time.Second
	case 1:
		policy.Idle, policy.MaxAge = policy.MaxAge, 0
	}
	if policy.MaxAge > 0 && h.chance(30) {
		policy.Jitter = 1 + h.rnd.IntN(100)
	}
	if policy.MaxAge > 0 && h.chance(30) {
		policy.Grace = time.Duration(1+h.rnd.IntN(12)) * time.Second
	}
	if h.chance(15) {
		policy.Rate = uint32(1 + h.rnd.IntN(5))
	}
	h.world = newWorld(t, policy)
	h.faulty, h.restarts, h.steps = h.chance(30), h.chance(30), h.chance(30)
	h.pinRaces = max(0, h.rnd.IntN(12)-8)
	h.cost = []time.Duration{0, 0, 20 * time.Microsecond, time.Millisecond}[h.rnd.IntN(4)]
	h.lag = []time.Duration{0, 0, 100 * time.Microsecond, 30 * time.Millisecond}[h.rnd.IntN(4)]
	h.fault = func(call string) error {
		if h.faulty && h.rnd.IntN(300) == 0 {
			h.tell("%s fails", call)
			return []error{unix.EPERM, unix.ENOBUFS, errBroken}[h.rnd.IntN(3)]
		}
		return nil
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s, cost %s, lag %s", &policy, h.cost, h.lag)
			for _, line := range h.story {
				t.Log(line)
			}
		}
	})
	if h.flushes = seed%3 == 0; h.flushes {
		h.cost = max(h.cost, time.Microsecond) // no two entries are born at once
		for range 1 + h.rnd.IntN(4) {
			h.after(h.time(40*time.Second), h.lose)
		}
	}
	length := 40 * time.Second
	for range 2 + h.rnd.IntN(6) {
		h.after(h.time(length), h.birth)
	}
	if h.restarts {
		for range 1 + h.rnd.IntN(3) {
			h.after(h.time(length), h.die)
		}
	}
	if h.steps {
		for range 1 + h.rnd.IntN(3) {
			h.after(h.time(length), h.step)
		}
	}
	for range 20 {
		h.run(length / 20)
		h.overstay(policy)
	}
	h.faulty = false
	if h.r == nil {
		h.start()
	}
	h.run(30 * time.Second)
	h.overstay(policy)
	if n := h.r.Scheduled(); n > len(h.entries)+2*len(h.conns) {
		t.Errorf("%d flows are scheduled", n)
	}
	h.everythingEnds(policy)
}

// everythingEnds waits until no connection can be left, and then nothing may be left of them in the reaper.
func (h *history) everythingEnds(policy ctpolicy.Policy) {
	h.over = true
	for _, c := range h.conns {
		if c.policy == nil && c.open() {
			c.send(c.client, rst, "")
		}
	}
	if h.chance(50) { // the deaf ends can hear again, or their entries expire
		for _, c := range h.conns {
			c.client.deaf, c.server.deaf = 0, 0
		}
	}
	h.run(2*policy.LastAge() + 2*policy.Idle + 30*time.Second + ctpolicy.Window + restAfter)
	h.drained()
	for _, c := range h.conns {
		if c.policy != nil && c.open() && c.client.deaf >= 0 && c.server.deaf >= 0 {
			h.tb.Errorf("%s is open in the end", c)
		}
	}
	if n := len(h.r.orphans); n != 0 {
		h.tb.Errorf("%d orphans are left", n)
	}
}

// overstay fails when a flow has overstayed. A reaper that lives ends each within its stated time: here the clock's
// reading, one second for the steps of a pause, and the time that calls and challenges take. Without a reaper, with faults
// or a rate, or after a step of the clock or the loss of entries there is no such promise.
func (h *history) overstay(p ctpolicy.Policy) {
	if h.faulty || h.restarts || h.steps || h.flushes || p.Rate > 0 {
		return
	}
	bound := 500*time.Millisecond + 2*h.lag + 100*h.cost
	for _, c := range h.conns {
		if c.policy == nil || !h.mustEnd(c) {
			continue
		}
		age, pause, bound := h.boot.Sub(c.born), h.boot.Sub(c.talked), bound
		if h.deaf[c] {
			bound += challengesTake
		}
		idleBound := bound
		if h.uncertain[c] {
			idleBound += h.r.Interval() + quietSlack
		}
		if p.MaxAge > 0 && age > p.AgeLimit(c.tuple)+p.Grace+bound || p.Idle > 0 && pause > p.Idle+idleBound && !h.offloaded[c] {
			h.tb.Errorf("%s is open at age %s after a pause of %s", c, age, pause)
		}
	}
}

// mustEnd tells whether an end is open that answers challenges.
func (h *history) mustEnd(c *conn) bool {
	for _, e := range []*tcp{c.client, c.server} {
		if e.open() && (e.deaf == 0 || e.here) {
			return true
		}
	}
	return false
}

// birth opens a connection, on a tuple that is free, and perhaps used before.
func (h *history) birth() {
	p := places[h.rnd.IntN(len(places))]
	dst := uint16(port)
	if h.chance(15) {
		dst = 80
	}
	src := uint16(40000 + h.rnd.IntN(4))
	for _, c := range h.conns {
		if c.open() && c.tuple.Src == addrPort(p.client, src) {
			return
		}
	}
	if h.over {
		return
	}
	c := h.open(p, src, dst)
	if h.chance(10) {
		h.find(c.tuple).Label = [16]byte{} // from before the rules
		h.uncertain[c] = p == forwarded
		h.find(c.tuple).base = 432000 * time.Second
		h.find(c.tuple).expires = h.boot.Add(432000 * time.Second)
	}
	for _, e := range []*tcp{c.client, c.server} {
		if h.chance(15) {
			h.deaf[c] = true
			e.deaf = 1 + h.rnd.IntN(challenge.Attempts-1)
		} else if h.chance(10) {
			e.deaf = -1
		}
	}
	h.tell("open %s (%s), deaf %d and %d", c, p.name, c.client.deaf, c.server.deaf)
	if p == forwarded && h.chance(20) {
		h.tell("a flowtable takes %s", c)
		h.offloaded[c], h.deaf[c] = true, true
		h.offload(c)
	}
	h.act(c)
}

// act makes the connection do something now and then.
func (h *history) act(c *conn) {
	h.after(h.time(3*time.Second), func() {
		if h.over {
			return
		}
		if !c.open() {
			if h.chance(70) {
				h.after(h.time(300*time.Millisecond), h.birth)
			}
			return
		}
		end := c.client
		if h.chance(50) {
			end = c.server
		}
		switch n := h.rnd.IntN(100); {
		case n < 45:
			h.tell("%s talks", c)
			c.send(end, data, "")
		case n < 65:
			every, long := time.Millisecond+h.time(200*time.Millisecond), h.time(15*time.Second)
			h.tell("%s talks each %s for %s", c, every, long)
			c.talk(every, long)
		case n < 70 && end.state == sockdiag.Established || n < 70 && end.state == sockdiag.CloseWait:
			h.tell("%s: %s sends FIN", c, end.local)
			c.send(end, fin, "")
		case n < 74:
			h.tell("%s is reset by %s", c, end.local)
			c.send(end, rst, "")
		}
		h.act(c)
	})
}

// lose deletes the entries of some or all connections with an end here, and perhaps the reaper is told.
func (h *history) lose() {
	all := h.chance(50)
	for _, c := range h.conns {
		e := h.find(c.tuple)
		if e == nil || !c.client.here && !c.server.here || !all && h.chance(50) {
			continue
		}
		h.tell("the entry of %s is deleted", c)
		h.remove(e)
	}
	if h.chance(70) {
		h.disturb()
	}
}

func (h *history) die() {
	h.tell("the reaper dies")
	h.kill()
	h.after(h.time(8*time.Second), func() {
		if h.r == nil {
			h.tell("the reaper is back")
			h.start()
		}
	})
}

// step waits until the last step was noticed: what the clock showed between two steps that nobody saw is lost.
func (h *history) step() {
	if len(h.notes) == h.noticed {
		return
	}
	h.noticed = len(h.notes)
	by := time.Hour
	if h.chance(50) {
		by = h.time(10 * time.Second)
	}
	if h.chance(50) {
		by = -by
	}
	h.tell("the clock is stepped by %s", by)
	h.offset += int64(by)
}
