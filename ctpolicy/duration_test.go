package ctpolicy

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestParseLimit(t *testing.T) {
	for _, c := range []struct {
		text string
		want time.Duration
	}{
		{"30s", 30 * time.Second},
		{"15m", 15 * time.Minute},
		{"1h30m", 90 * time.Minute},
		{"7d", 7 * day},
		{"1d12h", 36 * time.Hour},
		{"1.5d", 36 * time.Hour},
		{"0.5h", 30 * time.Minute},
		{"2d1h1m1s", 2*day + time.Hour + time.Minute + time.Second},
		{"5000ms", 5 * time.Second},
		{"1s", time.Second},
		{"365d", MaxLimit},
		{"8760h", MaxLimit},
		{"364d24h", MaxLimit},
	} {
		if got, err := ParseLimit(c.text); err != nil || got != c.want {
			t.Errorf("%q: got %v, %v; want %v", c.text, got, err, c.want)
		}
	}
}

func TestParseLimitRefuses(t *testing.T) {
	const (
		notOne   = "is not a duration: write for example 30s, 15m, 1h30m or 7d"
		zero     = "must be more than 0"
		fraction = "must be whole seconds"
		tooLong  = "must be at most 365d"
	)
	for _, c := range []struct{ text, want string }{
		{"0s", zero},
		{"0d", zero},
		{"-5m", zero},
		{"-1d", zero},
		{"-9000d", zero},
		{"0", `"0" has no unit: did you mean 0s or 0m?`},
		{"30", `"30" has no unit: did you mean 30s or 30m?`},
		{"1500ms", fraction},
		{"1h0.5s", fraction},
		{"366d", tooLong},
		{"365d1s", tooLong},
		{"8761h", tooLong},
		{"9000d", tooLong},
		{"2562047d", tooLong},
		{"365d2562047h", tooLong},
		{"99999999999999999999h", notOne},
		{"99999999999999999999d", notOne},
		{"", notOne},
		{"d", notOne},
		{"1d12", notOne},
		{"1dd", notOne},
		{"1d-5h", notOne},
		{"1d+5h", notOne},
		{"5h1d", notOne},
		{"5m1d", notOne},
		{"1 h", notOne},
		{"1w", notOne},
		{"an hour", notOne},
	} {
		if got, err := ParseLimit(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, %v; want an error with %q", c.text, got, err, c.want)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want string
	}{
		{0, "0s"},
		{time.Second, "1s"},
		{10 * time.Minute, "10m"},
		{time.Hour, "1h"},
		{time.Hour + 10*time.Minute, "1h10m"},
		{10*time.Hour + 10*time.Second, "10h0m10s"},
		{7 * day, "7d"},
		{36 * time.Hour, "1d12h"},
		{day + time.Second, "1d1s"},
		{MaxLimit, "365d"},
		{1500 * time.Millisecond, "1.5s"},
		{-90 * time.Minute, "-1h30m"},
		{-25 * time.Hour, "-1d1h"},
	} {
		if got := FormatDuration(c.d); got != c.want {
			t.Errorf("%v: got %q, want %q", c.d, got, c.want)
		}
	}
}

func TestLimitRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	units := []time.Duration{time.Second, time.Minute, time.Hour, day}
	for range 20_000 {
		unit := units[rnd.IntN(len(units))] // round numbers are where suffixes are cut
		d := unit * time.Duration(1+rnd.Int64N(int64(MaxLimit/unit)))
		text := FormatDuration(d)
		if got, err := ParseLimit(text); err != nil || got != d {
			t.Fatalf("%v is %q, and that is %v, %v", d, text, got, err)
		}
	}
}

func FuzzParseLimit(f *testing.F) {
	for _, text := range []string{"1d12h", "1h30m", "30", "0d0", "365d2562047h", "-1d", "1.5d", "d"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseLimit(text)
		if err != nil {
			return
		}
		if d < time.Second || d > MaxLimit || d%time.Second != 0 {
			t.Fatalf("%q is %v", text, d)
		}
		if again, err := ParseLimit(FormatDuration(d)); err != nil || again != d {
			t.Fatalf("%q is %v, and that is %v, %v", text, d, again, err)
		}
	})
}
