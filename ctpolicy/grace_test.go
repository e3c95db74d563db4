package ctpolicy

import (
	"math/rand/v2"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

func TestGraceDeadline(t *testing.T) {
	const s, m, h = time.Second, time.Minute, time.Hour
	const window = uint32(Window / s)
	aged := func(age time.Duration, timeout uint32, status uint32) *conntrack.Entry {
		e := tracked(flow(now.Add(-age)))
		e.Timeout, e.Status = timeout, e.Status|status
		return e
	}
	untracked := aged(h, 500, 0)
	untracked.Label = conntrack.Label{}
	for _, c := range []struct {
		name   string
		idle   time.Duration
		e      *conntrack.Entry
		at     time.Duration // from now
		cause  Cause
		passed bool
	}{
		{"young", 0, aged(50*m, 601, 0), 10 * m, CauseMaxAge, false},
		{"young, and has paused", 0, aged(50*m, 500, 0), 10 * m, CauseMaxAge, false},
		{"a nanosecond before max_age", 0, aged(h-1, 500, 0), 1, CauseMaxAge, false},
		{"at max_age, has paused", 0, aged(h, 500, 0), 0, CauseMaxAge, true},
		{"at max_age, talks", 0, aged(h, 601, 0), 0, CauseMaxAge, false},
		{"in its grace, a pause of 0 to 1 s", 0, aged(h+m, 600, 0), 0, CauseMaxAge, false},
		{"in its grace, a pause of 1 to 2 s", 0, aged(h+m, 599, 0), 0, CauseMaxAge, true},
		{"in its grace, a pause of 2 to 3 s", 0, aged(h+m, 598, 0), -s, CauseMaxAge, true},
		{"in its grace, paused since before", 0, aged(h+5*s, 100, 0), -5 * s, CauseMaxAge, true},
		{"in its grace, another one's timeout", 0, untracked, 0, CauseMaxAge, false},
		{"in its grace, a timeout above every object's", 0, aged(h+m, 602, 0), 0, CauseMaxAge, false},
		{"in its grace, in a flowtable", 0, aged(h+m, 0, conntrack.StatusOffload), 0, CauseMaxAge, false},
		{"a nanosecond before its hard end", 0, aged(h+10*m-1, 601, 0), 0, CauseMaxAge, false},
		{"at its hard end", 0, aged(h+10*m, 601, 0), 0, CauseMaxAge, true},
		{"at its hard end, in a flowtable", 0, aged(h+10*m, 0, conntrack.StatusOffload), 0, CauseMaxAge, true},
		{"long over", 0, aged(2*h, 601, 0), -50 * m, CauseMaxAge, true},
		{"pinned", 0, aged(h+10*m-s, window, conntrack.StatusFixedTimeout), s, CauseMaxAge, false},
		{"pinned, at its hard end", 0, aged(h+10*m, window-1, conntrack.StatusFixedTimeout), 0, CauseMaxAge, true},

		{"idle comes first", 10 * m, aged(55*m, 100, 0), 99 * s, CauseIdle, false},
		{"idle has passed before max_age", 10 * m, aged(55*m, 0, 0), -s, CauseIdle, true},
		{"idle does not hide the grace", 10 * m, aged(h+m, 601, 0), 0, CauseMaxAge, false},
	} {
		p := &Policy{Name: "ldap", MaxAge: h, Grace: 10 * m, Idle: c.idle}
		got := judge().Deadline(p, c.e, now)
		if want := (Deadline{now.Add(c.at), c.cause, c.passed}); got != want {
			t.Errorf("%s: got in %v, %q, %v; want %v, %q, %v", c.name, got.At.Sub(now), got.Cause, got.Passed, c.at, c.cause, c.passed)
		}
	}
}

// Jitter moves both ends, and grace comes after it.
func TestAgeEnds(t *testing.T) {
	j, e := judge(), flow(now.Add(-time.Minute))
	for _, p := range []Policy{
		{MaxAge: time.Hour}, {MaxAge: time.Hour, Jitter: 50}, {MaxAge: time.Hour, Jitter: 50, Grace: time.Minute},
	} {
		soft, hard := p.AgeEnds(e.Orig, j.Birth(e, now))
		if soft != now.Add(p.AgeLimit(e.Orig)-time.Minute) || hard != soft.Add(p.Grace) {
			t.Errorf("%s: %v, %v", &p, soft.Sub(now), hard.Sub(now))
		}
	}
}

// Whatever timeouts may have been set, a pause is never taken for longer than it is, and one of two seconds is seen when the timeout
// is known.
func TestPauseIsNeverTooLong(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 1))
	j := judge()
	for range 50_000 {
		p := &Policy{Name: "x", MaxAge: time.Hour, Grace: time.Minute}
		bases := make([]uint32, 1+rnd.IntN(3))
		for i := range bases {
			bases[i] = uint32(2 + rnd.IntN(2000))
		}
		j.Installed["x"] = bases
		base := bases[rnd.IntN(len(bases))]
		k := pausing{base, time.Duration(rnd.Int64N(int64(min(base, 10)) * int64(time.Second)))}
		e := tracked(flow(now))
		e.Timeout = k.left()
		got := j.Pause(p, e)
		if got > k.pause {
			t.Fatalf("%+v of %v: %s", k, bases, got)
		}
		if len(bases) == 1 && k.pause > 2*time.Second && got < GracePause {
			t.Fatalf("%+v: %s", k, got)
		}
		d := j.Deadline(p, tracked(&conntrack.Entry{Start: epoch + int64(now.Add(-time.Hour-time.Second)), Timeout: e.Timeout, Status: e.Status, State: e.State}), now)
		if d.Passed != (got >= GracePause) || d.At > now {
			t.Fatalf("%+v: %+v", k, d)
		}
	}
}
