package ctpolicy

import (
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

func TestEntryTimeout(t *testing.T) {
	const second = time.Second
	for _, c := range []struct {
		maxAge, idle, want time.Duration
		outlived           bool
	}{
		{time.Hour, 0, time.Hour + Window, true},
		{second, 0, second + Window, true},
		{0, 10 * time.Minute, 10*time.Minute + second, true},
		{0, second, 2 * second, true},
		{time.Hour, 10 * time.Minute, 10*time.Minute + second, true},
		{time.Minute, time.Hour, time.Minute + Window, true},
		{time.Minute, time.Minute + 5*second, time.Minute + 6*second, true},
		{20*day - Window - second, 0, 20*day - second, true},
		{20*day - Window, 0, 20 * day, false},
		{20 * day, 0, 20 * day, false},
		{MaxLimit, 0, 20 * day, false},
		{0, 20*day - 2*second, 20*day - second, true},
		{0, 20 * day, 20 * day, false},
		{MaxLimit, MaxLimit, 20 * day, false},
		{MaxLimit, time.Hour, time.Hour + second, true},
		{30 * day, 10 * day, 10*day + second, true},
	} {
		p := Policy{MaxAge: c.maxAge, Idle: c.idle}
		if got := p.EntryTimeout(); got != c.want || p.Outlived() != c.outlived {
			t.Errorf("%v: got %v, outlived %v; want %v, %v", &p, got, p.Outlived(), c.want, c.outlived)
		}
	}
}

func TestTimeouts(t *testing.T) {
	namespace := Timeouts{21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31}
	p := Policy{MaxAge: 30 * time.Minute}
	const open = uint32((30*time.Minute + Window) / time.Second)
	want := Timeouts{
		conntrack.TimeoutSynSent: 21, conntrack.TimeoutSynRecv: 22, conntrack.TimeoutEstablished: open,
		conntrack.TimeoutFinWait: open, conntrack.TimeoutCloseWait: open, conntrack.TimeoutLastAck: open,
		conntrack.TimeoutTimeWait: 27, conntrack.TimeoutClose: 1, conntrack.TimeoutSynSent2: 29,
		conntrack.TimeoutRetrans: open, conntrack.TimeoutUnack: open,
	}
	if got := p.Timeouts(namespace); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if namespace[conntrack.TimeoutClose] != 28 {
		t.Error("the namespace's own timeouts were changed")
	}
}

// The entry of a flow that waits for its turn must not expire, and a packet without an entry is no stray then. Its pause
// is read from it as from any other.
func TestEntryTimeoutWithARate(t *testing.T) {
	for _, p := range []Policy{
		{Name: "x", MaxAge: time.Hour, Rate: 1},
		{Name: "x", Idle: time.Minute, Rate: 200},
		{Name: "x", MaxAge: time.Hour, Idle: time.Minute, Rate: 1},
	} {
		if got := p.EntryTimeout(); got != maxTimeout || p.Outlived() {
			t.Errorf("%s: %s, outlived %v", &p, got, p.Outlived())
		}
		if p.Idle == 0 {
			continue
		}
		j, e := judge(), tracked(flow(now))
		base := uint32(maxTimeout / time.Second)
		j.Installed["x"] = []uint32{base}
		for pause, passed := range map[uint32]bool{0: false, 59: false, 60: false, 61: true, 7200: true} {
			e.Timeout = base - pause
			if d := j.Deadline(&p, e, now); d.Passed != passed || d.Cause != CauseIdle && p.MaxAge == 0 {
				t.Errorf("%s: after a pause of up to %d s: %+v", &p, pause, d)
			}
		}
	}
}
