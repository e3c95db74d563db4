package ctpolicy

import (
	"math/rand/v2"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

func TestPinAt(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ left, want time.Duration }{
		{-time.Hour, 0},
		{0, 0},
		{1, 1 + pinSlack},
		{300 * ms, 310 * ms},
		{time.Second, 10 * ms},
		{5*time.Second + 300*ms, 310 * ms},
		{time.Hour, 10 * ms},
	} {
		if got := PinAt(now.Add(c.left), now).Sub(now); got != c.want {
			t.Errorf("%v left: pin in %v, want %v", c.left, got, c.want)
		}
	}
}

func TestPinTimeout(t *testing.T) {
	const s, window = time.Second, uint32(Window / time.Second)
	for _, c := range []struct {
		left    time.Duration
		seconds uint32
		ok      bool
	}{
		{-time.Hour, window, true},
		{0, window, true},
		{1, window + 1, true},
		{s, window + 1, true},
		{s + 1, window + 2, true},
		{time.Hour, window + 3600, true},
		{20*day - Window, 20 * 86400, true},
		{20*day - Window + 1, 20*86400 + 1, false},
		{20 * day, window + 20*86400, false},
		{MaxLimit, window + 365*86400, false},
	} {
		if seconds, ok := PinTimeout(now.Add(c.left), now); seconds != c.seconds || ok != c.ok {
			t.Errorf("%v left: got %d, %v; want %d, %v", c.left, seconds, ok, c.seconds, c.ok)
		}
	}
}

// ruleStart is when the rule begins to answer for an entry pinned at an instant: `ct expiration <= 5m`.
func ruleStart(deadline, pinned Instant) Instant {
	seconds, _ := PinTimeout(deadline, pinned)
	return pinned.Add(time.Duration(seconds)*time.Second - Window)
}

// randomLeft is often whole seconds, and often close to them.
func randomLeft(rnd *rand.Rand) time.Duration {
	left := time.Duration(rnd.Int64N(int64(10 * time.Minute)))
	switch rnd.IntN(3) {
	case 0:
		return left.Truncate(time.Second) + time.Duration(rnd.IntN(5)-2)
	case 1:
		return left >> rnd.IntN(40)
	}
	return left
}

// Whenever a flow is pinned, the rule starts at its deadline or less than a second later, or at once.
func TestPinNeverEarly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 1))
	for range 50_000 {
		left := randomLeft(rnd)
		deadline := now.Add(left)
		if d := ruleStart(deadline, now).Sub(max(deadline, now)); d < 0 || d >= time.Second {
			t.Fatalf("pinned with %v left: the rule starts %v after the deadline", left, d)
		}
	}
}

// A flow that is pinned when it should be has the rule start with the slack; a late timer adds its delay.
func TestPinOnTheSecond(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 2))
	for range 50_000 {
		left := max(0, randomLeft(rnd))
		deadline := now.Add(left)
		delay := time.Duration(rnd.Int64N(int64(time.Second - pinSlack)))
		want := pinSlack + delay
		if left == 0 {
			want = delay // its time is up: there is nothing to wait for
		}
		at := PinAt(deadline, now)
		if at < now || at > now.Add(time.Second+pinSlack) {
			t.Fatalf("%v left: pin in %v", left, at.Sub(now))
		}
		if d := ruleStart(deadline, at.Add(delay)).Sub(deadline); d != want {
			t.Fatalf("pinned with %v left, late by %v: the rule starts %v after the deadline", left, delay, d)
		}
		// However late: then the next whole second is next.
		at = at.Add(time.Duration(rnd.Int64N(int64(20 * time.Minute))))
		if d := ruleStart(deadline, at).Sub(max(deadline, at)); d < 0 || d >= time.Second {
			t.Fatalf("pinned with %v left: the rule starts %v after the deadline", deadline.Sub(at), d)
		}
	}
}

// What a later process reads from a pinned entry: never before the true deadline, and at most a second after the rule's
// start. With the flow's birth it is the deadline itself.
func TestPinnedDeadline(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 3))
	j := judge()
	p := &Policy{Name: "ldap", MaxAge: 20 * time.Minute, Idle: time.Minute}
	for range 50_000 {
		deadline := now.Add(randomLeft(rnd))
		pinned := now.Add(-time.Duration(rnd.Int64N(int64(5 * time.Minute))))
		start := ruleStart(deadline, pinned)
		expires := start.Add(Window)
		if expires < now {
			continue
		}
		e := flow(deadline.Add(-p.MaxAge))
		e.Status |= conntrack.StatusFixedTimeout
		e.Timeout = uint32(expires.Sub(now) / time.Second)
		got := PinnedDeadline(e, now)
		if got < deadline || got <= start || got > start.Add(time.Second) {
			t.Fatalf("deadline in %v, rule in %v: read %v", deadline.Sub(now), start.Sub(now), got.Sub(now))
		}
		if d := j.Deadline(p, e, now); d != (Deadline{deadline, CauseMaxAge, now >= deadline}) {
			t.Fatalf("deadline in %v: judged %v, %+v", deadline.Sub(now), d.At.Sub(now), d)
		}
		e.Start = 0
		j.Since = now
		if d := j.Deadline(p, e, now); d.At != got || d.Passed != (now >= got) {
			t.Fatalf("birth not recorded: judged %v, %+v; want %v", d.At.Sub(now), d, got.Sub(now))
		}
	}
}
