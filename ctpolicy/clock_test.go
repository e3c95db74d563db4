package ctpolicy

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestSystemClock(t *testing.T) {
	before := time.Now()
	first := SystemClock{}.Now()
	second := SystemClock{}.Now()
	after := time.Now()
	if first.Boot <= 0 || second.Boot < first.Boot {
		t.Errorf("boot clock: %v, then %v", first.Boot, second.Boot)
	}
	if d := second.Boot.Sub(first.Boot); d > after.Sub(before) {
		t.Errorf("%v between two readings within %v", d, after.Sub(before))
	}
	for _, r := range []Reading{first, second} {
		if wall := time.Unix(0, r.Wall); wall.Before(before.Round(0)) || wall.After(after.Round(0)) {
			t.Errorf("wall clock: %v, want between %v and %v", wall, before, after)
		}
	}
}

func TestInstant(t *testing.T) {
	i := Instant(5 * time.Second)
	if got := i.Add(-time.Minute); got != Instant(-55*time.Second) || i.Sub(got) != time.Minute {
		t.Errorf("got %v, %v", got, i.Sub(got))
	}
}

func TestBootID(t *testing.T) {
	id := BootID()
	if len(id) != 8 || strings.Trim(id, "0123456789abcdef") != "" || id != BootID() {
		t.Errorf("got %q", id)
	}
}

func TestNote(t *testing.T) {
	r := Reading{Instant(90*time.Minute + 123456789), 1_700_000_000_000_000_001}
	const want = "clock: boot 1234abcd +1h30m0.123456789s = 2023-11-14T22:13:20.000000001Z"
	if got := r.Note("1234abcd"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNoteRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 1))
	readings := []Reading{{}, {math.MaxInt64, math.MaxInt64}, {math.MaxInt64, math.MinInt64}, {1, 1}, {1000, -1}}
	for range 5000 {
		shift := rnd.IntN(63) // all sizes: the text has other units below a second
		readings = append(readings, Reading{Instant(rnd.Int64() >> shift), rnd.Int64()})
	}
	for _, r := range readings {
		note := r.Note("1234abcd")
		if len(note) >= 128 {
			t.Errorf("%q is too long for a comment", note)
		}
		if got, ok := ParseNote(note, "1234abcd"); !ok || got != r {
			t.Fatalf("%+v is %q, and that is %+v, %v", r, note, got, ok)
		}
	}
}

func TestParseNoteRefuses(t *testing.T) {
	const good = "clock: boot 1234abcd +1h0m0s = 2023-11-14T22:13:20Z"
	if _, ok := ParseNote(good, "1234abcd"); !ok {
		t.Fatal("the good one is refused")
	}
	for _, c := range []struct{ name, note, bootID string }{
		{"another boot", good, "ffffffff"},
		{"a part of the boot id", good, "1234"},
		{"no boot id", good, ""},
		{"no boot id on both sides", strings.Replace(good, "1234abcd", "", 1), ""},
		{"empty", "", "1234abcd"},
		{"no wall clock", "clock: boot 1234abcd +1h0m0s", "1234abcd"},
		{"no boot clock", "clock: boot 1234abcd + = 2023-11-14T22:13:20Z", "1234abcd"},
		{"another comment", "policy: ldap", "1234abcd"},
		{"something behind", good + " ", "1234abcd"},
	} {
		if got, ok := ParseNote(c.note, c.bootID); ok || got != (Reading{}) {
			t.Errorf("%s: got %+v, %v", c.name, got, ok)
		}
	}
}

func FuzzParseNote(f *testing.F) {
	f.Add("clock: boot 1234abcd +1h0m0.5s = 2023-11-14T22:13:20Z")
	f.Add("clock: boot 1234abcd +-1ns = 9999-11-14T22:13:20.1+07:00")
	f.Add("clock: boot 1234abcd + = ")
	f.Fuzz(func(t *testing.T, note string) {
		r, ok := ParseNote(note, "1234abcd")
		if !ok {
			return
		}
		if again, ok := ParseNote(r.Note("1234abcd"), "1234abcd"); !ok || again != r {
			t.Fatalf("%q is %+v, and that is %+v, %v", note, r, again, ok)
		}
	})
}
