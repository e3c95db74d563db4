package ctpolicy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

const (
	hour    = Instant(time.Hour)
	epoch   = int64(1_700_000_000_000_000_000) // the wall clock at boot
	oneHour = int64(time.Hour)
)

func TestTimeline(t *testing.T) {
	for _, c := range []struct {
		name     string
		readings []Reading
		wall     int64
		want     Instant
		ok       bool
	}{
		{"no reading", nil, epoch, 0, false},
		{"no step", []Reading{{hour, epoch + oneHour}}, epoch + 5, 5, true},
		{"at the last reading", []Reading{{hour, epoch + oneHour}}, epoch + oneHour, hour, true},
		{"in the future", []Reading{{hour, epoch + oneHour}}, epoch + 2*oneHour, 0, false},
		{"before boot", []Reading{{hour, epoch + oneHour}}, epoch - oneHour, 0, false},
		{
			"forward, born before",
			[]Reading{{hour, epoch + oneHour}, {2 * hour, epoch + 12*oneHour}},
			epoch + 30*oneHour/60, hour / 2, true,
		},
		{
			"forward, born after",
			[]Reading{{hour, epoch + oneHour}, {2 * hour, epoch + 12*oneHour}, {3 * hour, epoch + 13*oneHour}},
			epoch + 25*oneHour/2, 5 * hour / 2, true,
		},
		{
			"back, born before",
			[]Reading{{5 * hour, epoch + 5*oneHour}, {6 * hour, epoch + 2*oneHour}},
			epoch + oneHour/2, hour / 2, true,
		},
		// The time that the wall clock showed twice: the later instant.
		{
			"back, born before or after",
			[]Reading{{5 * hour, epoch + 5*oneHour}, {6 * hour, epoch + 2*oneHour}, {8 * hour, epoch + 4*oneHour}},
			epoch + 3*oneHour, 7 * hour, true,
		},
		// A step of a minute between two readings: 30 s after the first, it may or may not have happened.
		{
			"back, between the readings",
			[]Reading{{5 * hour, epoch + 5*oneHour}, {6 * hour, epoch + 6*oneHour - int64(time.Minute)}},
			epoch + 5*oneHour + int64(30*time.Second), 5*hour + Instant(90*time.Second), true,
		},
	} {
		got, ok := NewTimeline(c.readings...).Instant(c.wall)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: got %v, %v; want %v, %v", c.name, time.Duration(got), ok, time.Duration(c.want), c.ok)
		}
	}
}

func TestTimelineNoticesSteps(t *testing.T) {
	tl := NewTimeline()
	for i, c := range []struct {
		reading Reading
		want    bool
	}{
		{Reading{hour, epoch}, false}, // the first is no step
		{Reading{hour + 1, epoch + 1}, false},
		{Reading{hour + 2, epoch + 2 + int64(stepTolerance)}, false},
		{Reading{hour + 3, epoch + 3 + int64(stepTolerance) + 1}, true},
		{Reading{hour + 4, epoch + 4 + int64(stepTolerance) + 1}, false},
		{Reading{hour + 5, epoch + 5}, true},
	} {
		if got := tl.Observe(c.reading); got != c.want {
			t.Errorf("reading %d: got %v", i, got)
		}
	}
}

// A history is a wall clock that is stepped, and the moments at which somebody reads it.
type history struct {
	steps []step // sorted
	reads []Instant
}

type step struct {
	at Instant
	by time.Duration
}

func (h *history) wall(at Instant) int64 {
	wall := epoch + int64(at)
	for _, s := range h.steps {
		if s.at <= at {
			wall += int64(s.by)
		}
	}
	return wall
}

// jitter is how far a reading of both clocks may be off.
const jitter = 25 * time.Microsecond

func (h *history) timeline(rnd *rand.Rand) *Timeline {
	tl := NewTimeline()
	for _, at := range h.reads {
		tl.Observe(Reading{at, h.wall(at) + rnd.Int64N(2*int64(jitter)) - int64(jitter)})
	}
	return tl
}

// randomHistory has at most one step between two readings, and none before the first: nobody can tell a step back and
// forth between two readings, or one before the first, from none.
func randomHistory(rnd *rand.Rand, steps bool) *history {
	h := &history{}
	for range 2 + rnd.IntN(5) {
		h.reads = append(h.reads, hour+Instant(rnd.Int64N(10*oneHour)))
	}
	slices.Sort(h.reads)
	for i, from := range h.reads[1:] {
		if gap := from - h.reads[i]; steps && gap > 1 && rnd.IntN(3) > 0 {
			by := time.Duration(1) << rnd.IntN(46) // up to 9 h, and too small to be noticed
			by += time.Duration(rnd.Int64N(int64(by)))
			if rnd.IntN(2) == 0 {
				by = -by
			}
			h.steps = append(h.steps, step{h.reads[i] + 1 + Instant(rnd.Int64N(int64(gap-1))), by})
		}
	}
	return h
}

// birth is any moment up to the last reading, often one that is close to a step or a reading.
func (h *history) birth(rnd *rand.Rand) Instant {
	last := h.reads[len(h.reads)-1]
	at := Instant(rnd.Int64N(int64(last)))
	near := Instant(rnd.Int64N(int64(4*stepTolerance))) - Instant(2*stepTolerance)
	switch n := rnd.IntN(4); {
	case n == 0:
		at = h.reads[rnd.IntN(len(h.reads))] + near
	case n == 1 && len(h.steps) > 0:
		at = h.steps[rnd.IntN(len(h.steps))].at + near
	}
	return max(0, min(at, last))
}

func (h *history) String() string { return fmt.Sprintf("steps %v, reads %v", h.steps, h.reads) }

// A flow is never taken for older than it is, whatever the wall clock did, apart from steps that are too small to be
// noticed.
func TestBirthIsNeverTooEarly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 1))
	for range 20_000 {
		h := randomHistory(rnd, true)
		j := &Judge{Timeline: h.timeline(rnd)}
		now := h.reads[len(h.reads)-1]
		for range 10 {
			birth := h.birth(rnd)
			got := j.Birth(&conntrack.Entry{Start: h.wall(birth)}, now)
			if got < birth.Add(-stepTolerance-jitter) || got > now {
				t.Fatalf("%v: born at %d, taken for %d (%v), now %d", h, birth, got, got.Sub(birth), now)
			}
		}
	}
}

func TestBirthIsExactWithoutSteps(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 2))
	for range 5000 {
		h := randomHistory(rnd, false)
		j := &Judge{Timeline: h.timeline(rnd)}
		now := h.reads[len(h.reads)-1]
		birth := h.birth(rnd)
		if d := j.Birth(&conntrack.Entry{Start: h.wall(birth)}, now).Sub(birth); d > jitter || d < -jitter {
			t.Fatalf("%v: born at %d, off by %v", h, birth, d)
		}
	}
}

// A step is only ambiguous for births close to it: others stay exact.
func TestBirthIsExactFarFromSteps(t *testing.T) {
	h := &history{
		steps: []step{{2*hour + 5, -time.Minute}, {4*hour + 5, time.Minute}},
		reads: []Instant{2 * hour, 2*hour + 10, 4 * hour, 4*hour + 10, 6 * hour},
	}
	j := &Judge{Timeline: h.timeline(rand.New(rand.NewPCG(4, 3)))}
	for _, birth := range []Instant{0, hour, 2*hour - Instant(2*time.Minute), 3 * hour, 5 * hour} {
		if d := j.Birth(&conntrack.Entry{Start: h.wall(birth)}, 6*hour).Sub(birth); d > jitter || d < -jitter {
			t.Errorf("born at %v, off by %v", time.Duration(birth), d)
		}
	}
}
