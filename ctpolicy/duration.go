package ctpolicy

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseLimit reads a limit such as "30s", "15m", "1h30m" or "7d": whole seconds, at least one, at most a year.
func ParseLimit(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err != nil {
		return 0, err
	}
	return d, checkLimit(d)
}

func checkLimit(d time.Duration) error {
	switch {
	case d <= 0:
		return errors.New("must be more than 0, for example 30s or 1h")
	case d%time.Second != 0:
		return errors.New("must be whole seconds: the kernel counts timeouts in seconds")
	case d > MaxLimit:
		return errors.New("must be at most 365d")
	}
	return nil
}

// parseDuration is time.ParseDuration with days in front.
func parseDuration(s string) (time.Duration, error) {
	rest := s
	var days time.Duration
	if number, after, found := strings.Cut(s, "d"); found {
		// Hours have the same syntax as days, but a number must not hold units of its own: "5h1d" is none.
		h, err := time.ParseDuration(number + "h")
		if err != nil || strings.Trim(number, "+-.0123456789") != "" || strings.ContainsAny(after, "+-") {
			return 0, durationError(s)
		}
		h = max(-MaxLimit, min(h, MaxLimit)) // too many days stay too many, and 24 times as much does not overflow
		if after == "" {
			return h * 24, nil
		}
		days, rest = h*24, after
	}
	d, err := time.ParseDuration(rest)
	if err != nil || (rest == "0" && days == 0) {
		return 0, durationError(s)
	}
	return days + min(d, 2*MaxLimit), nil
}

func durationError(s string) error {
	if s != "" && strings.Trim(s, "0123456789") == "" {
		return fmt.Errorf("%q has no unit: did you mean %ss or %sm?", s, s, s)
	}
	return fmt.Errorf("%q is not a duration: write for example 30s, 15m, 1h30m or 7d", s)
}

// FormatDuration is a short text that ParseLimit reads as d: "1h30m", "7d". Fractions of a second stay.
func FormatDuration(d time.Duration) string {
	if d < 0 {
		return "-" + FormatDuration(-d)
	}
	var b strings.Builder
	if days := d / day; days > 0 {
		fmt.Fprintf(&b, "%dd", days)
		d -= days * day
	}
	if d > 0 || b.Len() == 0 {
		text := d.String()
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		b.WriteString(text)
	}
	return b.String()
}
