package reaper

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A bubbleClock is the time of a synctest bubble.
type bubbleClock struct{}

func (bubbleClock) Now() ctpolicy.Reading {
	now := time.Now().UnixNano()
	return ctpolicy.Reading{Boot: ctpolicy.Instant(now), Wall: now}
}

// slowDumps notes when sweeps begin, and takes its time.
type slowDumps struct {
	*kernel
	began []time.Time
	take  time.Duration
}

func (d *slowDumps) Dump(f conntrack.Filter, fn func(*conntrack.Entry) error) error {
	d.began = append(d.began, time.Now())
	time.Sleep(d.take)
	return nil
}

// sweeps runs a reaper for some seconds and answers when it swept.
func sweeps(t *testing.T, long, take time.Duration, disturb func(context.Context, chan struct{})) (at []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, limit(8*time.Second, 0)) // an interval of a second
		dumps := &slowDumps{kernel: w.kernel, take: take}
		w.r.Clock, w.r.Flows = bubbleClock{}, dumps
		disturbed := make(chan struct{}, 1)
		w.r.Disturbed = disturbed
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		began := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			if disturb != nil {
				disturb(ctx, disturbed)
			}
		}()
		w.r.Run(ctx)
		<-done
		for _, sweep := range dumps.began {
			at = append(at, sweep.Sub(began))
		}
	})
	return at
}

const ms = time.Millisecond

func TestRegularSweeps(t *testing.T) {
	want := []time.Duration{0, 200 * ms, 1200 * ms, 2200 * ms}
	if got := sweeps(t, 3*time.Second, 0, nil); !slices.Equal(got, want) {
		t.Errorf("swept at %v, want %v", got, want)
	}
}

// A disturbance is followed by a sweep at once, and that by the regular ones.
func TestDisturbed(t *testing.T) {
	got := sweeps(t, 3*time.Second, 0, func(_ context.Context, c chan struct{}) {
		time.Sleep(500 * ms)
		c <- struct{}{}
		time.Sleep(30 * ms)
		c <- struct{}{}
		close(c)
	})
	want := []time.Duration{0, 200 * ms, 500 * ms, 600 * ms, 1600 * ms, 2600 * ms}
	if !slices.Equal(got, want) {
		t.Errorf("swept at %v, want %v", got, want)
	}
}

// Many disturbances are one, and a sweep that takes long is not repeated without a rest.
func TestManyDisturbances(t *testing.T) {
	for take, every := range map[time.Duration]time.Duration{0: disturbedEvery, 100 * ms: 400 * ms} {
		got := sweeps(t, 3*time.Second, take, func(ctx context.Context, c chan struct{}) {
			for ctx.Err() == nil {
				select {
				case c <- struct{}{}:
				default:
				}
				time.Sleep(ms / 3)
			}
		})
		for i := 2; i < len(got); i++ {
			if pause := got[i] - got[i-1]; pause < every || pause > every+ms {
				t.Errorf("sweeps that take %s: swept again after %s, want %s", take, pause, every)
			}
		}
		if len(got) < int(3*time.Second/every)-1 {
			t.Errorf("sweeps that take %s: only %d of them", take, len(got))
		}
	}
}
