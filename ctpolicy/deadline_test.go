package ctpolicy

import (
	"math/rand/v2"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

// now is the moment at which most tests here judge; the wall clock's offset never changes.
const now = 100 * hour

func judge() *Judge {
	return &Judge{
		Timeline: NewTimeline(Reading{now, epoch + int64(now)}),
		Since:    now.Add(-time.Hour),
		Defaults: conntrack.DefaultTimeouts(),
		Installed: map[string][]uint32{
			"ldap": {601},
			"web":  {31, 601, 3610},
		},
	}
}

// flow is an open IPv4 flow that was born at an instant.
func flow(birth Instant) *conntrack.Entry {
	e := entryOf("10.0.0.1:40000", "10.0.0.2:389")
	e.Start = epoch + int64(birth)
	e.Timeout = 600
	return e
}

func tracked(e *conntrack.Entry) *conntrack.Entry {
	e.Label.Set(LabelTracked)
	return e
}

func TestOpen(t *testing.T) {
	for state := range uint8(14) {
		want := state >= conntrack.StateEstablished && state <= conntrack.StateLastAck
		e := &conntrack.Entry{State: state, Status: conntrack.StatusAssured}
		if Open(e) != want {
			t.Errorf("%s: open is %v", conntrack.StateName(state), Open(e))
		}
		e.Status = conntrack.StatusSeenReply | conntrack.StatusConfirmed
		if Open(e) {
			t.Errorf("%s: open although not assured", conntrack.StateName(state))
		}
	}
}

func TestBirth(t *testing.T) {
	for _, c := range []struct {
		name  string
		start int64
		since Instant
		want  Instant
	}{
		{"known", epoch + 5*oneHour, 0, 5 * hour},
		{"just now", epoch + int64(now), 0, now},
		{"not recorded", 0, 7 * hour, 7 * hour},
		{"not recorded, and we have just begun", 0, now + hour, now},
		{"in the future", epoch + int64(now) + oneHour, 0, now},
		{"a moment after now", epoch + int64(now) + 1, 0, now},
		{"before boot", epoch - oneHour, 0, now},
	} {
		j := judge()
		j.Since = c.since
		if got := j.Birth(&conntrack.Entry{Start: c.start}, now); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, time.Duration(got), time.Duration(c.want))
		}
	}
}

func TestDeadline(t *testing.T) {
	pinned := func(e *conntrack.Entry, timeout uint32) *conntrack.Entry {
		e.Status |= conntrack.StatusFixedTimeout
		e.Timeout = timeout
		return e
	}
	left := func(e *conntrack.Entry, timeout uint32) *conntrack.Entry {
		e.Timeout = timeout
		return e
	}
	unborn := flow(now)
	unborn.Start = 0
	const s, m, h = time.Second, time.Minute, time.Hour
	const window = uint32(Window / s)
	for _, c := range []struct {
		name         string
		maxAge, idle time.Duration
		e            *conntrack.Entry
		at           time.Duration // from now
		cause        Cause
		passed       bool
	}{
		{"young", h, 0, flow(now.Add(-10 * m)), 50 * m, CauseMaxAge, false},
		{"a nanosecond left", h, 0, flow(now.Add(-h + 1)), 1, CauseMaxAge, false},
		{"just over", h, 0, flow(now.Add(-h)), 0, CauseMaxAge, true},
		{"long over", h, 0, flow(now.Add(-5 * h)), -4 * h, CauseMaxAge, true},
		{"birth not recorded", 2 * h, 0, unborn, h, CauseMaxAge, false},
		{"birth in the future", h, 0, flow(now.Add(h)), h, CauseMaxAge, false},

		{"idle for 0 to 1 s", 0, 10 * m, tracked(left(flow(now), 600)), 10*m - s, CauseIdle, false},
		{"a packet just now", 0, 10 * m, tracked(left(flow(now), 601)), 10 * m, CauseIdle, false},
		{"idle for 599 to 600 s", 0, 10 * m, tracked(left(flow(now), 1)), 0, CauseIdle, false},
		{"idle for 600 to 601 s", 0, 10 * m, tracked(left(flow(now), 0)), -s, CauseIdle, true},

		{"age comes first", h, 10 * m, tracked(left(flow(now.Add(-55*m)), 600)), 5 * m, CauseMaxAge, false},
		{"idle comes first", h, 10 * m, tracked(left(flow(now.Add(-55*m)), 200)), 199 * s, CauseIdle, false},
		{"both at once", h, 10 * m, tracked(left(flow(now.Add(-55*m)), 301)), 5 * m, CauseMaxAge, false},
		{"both passed", h, 10 * m, tracked(left(flow(now.Add(-2*h)), 0)), -h, CauseMaxAge, true},
		{"idle passed", h, 10 * m, tracked(left(flow(now.Add(-20*m)), 0)), -s, CauseIdle, true},

		{"pinned as we would", h, 10 * m, pinned(flow(now.Add(-50*m)), 599+window), 10 * m, CauseMaxAge, false},
		{"pinned under a shorter limit", h, 0, pinned(flow(now.Add(-10*m)), 59+window), m, CauseMaxAge, false},
		{"pinned, birth not recorded", 2 * h, 0, pinned(entryOf("10.0.0.1:1", "10.0.0.2:389"), 9+window), 10 * s, CauseMaxAge, false},
		{"pinned, the rule is active", h, 0, pinned(entryOf("10.0.0.1:1", "10.0.0.2:389"), window-1), 0, CauseMaxAge, true},
		{"pinned, not idle any more", h, m, pinned(flow(now.Add(-10*m)), 1990+window), 1991 * s, CauseMaxAge, false},
		// Whoever ends a flow for its pause pins it; from then on nobody knows the pause.
		{"pinned for its pause", 0, m, pinned(flow(now.Add(-10*m)), window-1), -time.Duration(now), "", false},
	} {
		p := &Policy{Name: "ldap", MaxAge: c.maxAge, Idle: c.idle}
		got := judge().Deadline(p, c.e, now)
		if want := (Deadline{now.Add(c.at), c.cause, c.passed}); got != want {
			t.Errorf("%s: got in %v, %q, %v; want %v, %q, %v", c.name,
				got.At.Sub(now), got.Cause, got.Passed, c.at, c.cause, c.passed)
		}
	}
}

func TestTimeoutBase(t *testing.T) {
	const none = 1 << 30
	for _, c := range []struct {
		name    string
		policy  string
		label   bool
		state   uint8
		timeout uint32
		want    uint32
	}{
		{"its object", "ldap", true, conntrack.StateEstablished, 5, 601},
		{"its object, in another state", "ldap", true, conntrack.StateFinWait, 5, 601},
		{"a short object", "web", true, conntrack.StateEstablished, 31, 31},
		{"a longer object", "web", true, conntrack.StateEstablished, 32, 601},
		{"the longest object", "web", true, conntrack.StateEstablished, 602, 3610},
		{"longer than every object", "web", true, conntrack.StateEstablished, 3611, 432000},
		{"another policy's object", "mail", true, conntrack.StateEstablished, 5, 300},
		{"no label", "ldap", false, conntrack.StateEstablished, 301, 432000},
		{"no label, perhaps unacknowledged", "ldap", false, conntrack.StateEstablished, 300, 300},
		{"no label, FIN_WAIT", "ldap", false, conntrack.StateFinWait, 120, 120},
		{"no label, CLOSE_WAIT", "ldap", false, conntrack.StateCloseWait, 60, 60},
		{"no label, LAST_ACK", "ldap", false, conntrack.StateLastAck, 2, 30},
		{"no label, LAST_ACK, more than its own", "ldap", false, conntrack.StateLastAck, 31, 300},
		{"longer than anything", "ldap", false, conntrack.StateEstablished, none, none},
	} {
		e := &conntrack.Entry{State: c.state, Timeout: c.timeout}
		if c.label {
			tracked(e)
		}
		if got := judge().timeoutBase(&Policy{Name: c.policy}, e); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

// A pausing is what the kernel does: the last packet set the timeout to base, pause ago; the seconds left are cut.
type pausing struct {
	base  uint32
	pause time.Duration
}

func (p pausing) left() uint32 {
	return uint32((time.Duration(p.base)*time.Second - p.pause) / time.Second)
}

// randomPause is below base, often close to limit, and often whole seconds.
func randomPause(rnd *rand.Rand, base uint32, limit time.Duration) time.Duration {
	whole := time.Duration(base) * time.Second
	pause := time.Duration(rnd.Int64N(int64(whole)))
	switch rnd.IntN(4) {
	case 0:
		pause = limit + time.Duration(rnd.Int64N(int64(2*time.Second))) - time.Second
	case 1:
		pause = limit + time.Duration(rnd.IntN(3)-1)
	case 2:
		pause = pause.Truncate(time.Second)
	}
	return max(0, min(pause, whole-1))
}

// The timeout that was set is known: then a pause that is too long is noticed at once, and never before.
func TestIdleDeadline(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 1))
	j := judge()
	for range 50_000 {
		p := &Policy{Name: "x", Idle: time.Second * time.Duration(1+rnd.IntN(5000))}
		base := uint32(p.EntryTimeout()/time.Second) + uint32(rnd.IntN(3)*rnd.IntN(5000))
		j.Installed["x"] = []uint32{base}
		k := pausing{base, randomPause(rnd, base, p.Idle)}
		e := tracked(flow(now))
		e.Timeout = k.left()
		d := j.Deadline(p, e, now)
		truth := now.Add(p.Idle - k.pause)
		if d.Passed != (k.pause > p.Idle) {
			t.Fatalf("%v, %+v: passed is %v", p, k, d.Passed)
		}
		if d.At > truth || d.At <= truth.Add(-time.Second) {
			t.Fatalf("%v, %+v: in %v, want up to 1 s before %v", p, k, d.At.Sub(now), truth.Sub(now))
		}
	}
}

// Several timeouts may have been set: a flow may be taken for less idle than it is, never for more.
func TestIdleIsNeverTooEarly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 2))
	j := judge()
	states := []uint8{
		conntrack.StateEstablished, conntrack.StateFinWait, conntrack.StateCloseWait, conntrack.StateLastAck,
	}
	for range 50_000 {
		p := &Policy{Name: "x", Idle: time.Second * time.Duration(1+rnd.IntN(1000))}
		e := flow(now)
		e.State = states[rnd.IntN(len(states))]
		var bases []uint32
		if rnd.IntN(2) == 0 {
			for range 1 + rnd.IntN(4) {
				bases = append(bases, uint32(1+rnd.IntN(2000)))
			}
			tracked(e)
		} else {
			bases = []uint32{j.Defaults[conntrack.TimeoutOf(e.State)]}
			bases = append(bases, min(bases[0], j.Defaults[conntrack.TimeoutUnack]))
		}
		j.Installed["x"] = bases
		base := bases[rnd.IntN(len(bases))]
		k := pausing{base, randomPause(rnd, base, p.Idle)}
		e.Timeout = k.left()
		if d := j.Deadline(p, e, now); d.Passed && k.pause < p.Idle {
			t.Fatalf("%v, %+v of %v: passed", p, k, bases)
		}
	}
}

// A flow in a flowtable has its birth, and nothing that tells its pause.
func TestDeadlineOffloaded(t *testing.T) {
	j := judge()
	e := flow(now.Add(-time.Minute))
	e.Status |= conntrack.StatusOffload
	e.State, e.Timeout = 0, 0
	if !Open(e) {
		t.Error("it is not open")
	}
	for _, c := range []struct {
		p    Policy
		want Deadline
	}{
		{Policy{MaxAge: time.Hour}, Deadline{now.Add(59 * time.Minute), CauseMaxAge, false}},
		{Policy{MaxAge: time.Minute}, Deadline{now, CauseMaxAge, true}},
		{Policy{MaxAge: time.Minute, Idle: time.Second}, Deadline{now, CauseMaxAge, true}},
		{Policy{MaxAge: time.Hour, Idle: time.Second}, Deadline{now.Add(time.Second), CauseIdle, false}},
		{Policy{Idle: time.Second}, Deadline{now.Add(time.Second), CauseIdle, false}},
	} {
		if got := j.Deadline(&c.p, e, now); got != c.want {
			t.Errorf("%v: got %+v, want %+v", &c.p, got, c.want)
		}
	}
}

func TestDeadlineDoesNotAllocate(t *testing.T) {
	j := judge()
	m := NewMatcher([]Policy{{Name: "ldap", Ports: []PortRange{{389, 389}}, MaxAge: time.Hour, Idle: time.Minute}}, nowhere)
	for name, e := range map[string]*conntrack.Entry{"tracked": tracked(flow(now)), "untracked": flow(now)} {
		if n := testing.AllocsPerRun(100, func() { j.Deadline(m.Flow(e), e, now) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDeadline(b *testing.B) {
	j, e := judge(), tracked(flow(now.Add(-time.Minute)))
	p := &Policy{Name: "ldap", MaxAge: time.Hour, Idle: 10 * time.Minute}
	b.ReportAllocs()
	for b.Loop() {
		if j.Deadline(p, e, now).Passed {
			b.Fatal("passed")
		}
	}
}
