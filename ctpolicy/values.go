package ctpolicy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Mode tells whether a policy acts.
type Mode string

// The modes.
const (
	Enforce Mode = ""
	Report  Mode = "report"
)

// ParseMode reads enforce or report.
func ParseMode(s string) (Mode, error) {
	switch s {
	case "enforce":
		return Enforce, nil
	case string(Report):
		return Report, nil
	}
	return Enforce, fmt.Errorf("%q is not a mode: it must be enforce or report", s)
}

// String is the word that ParseMode reads.
func (m Mode) String() string {
	if m == Enforce {
		return "enforce"
	}
	return string(m)
}

// A Refuse is what the client of a flow too many gets.
type Refuse string

// The ways to refuse a flow.
const (
	Reset Refuse = ""
	Drop  Refuse = "drop"
)

// ParseRefuse reads reset or drop.
func ParseRefuse(s string) (Refuse, error) {
	switch s {
	case "reset":
		return Reset, nil
	case string(Drop):
		return Drop, nil
	}
	return Reset, fmt.Errorf("%q is no way to refuse: it must be reset or drop", s)
}

// DefaultSourcePrefix6 is what a client over IPv6 usually has for itself.
const DefaultSourcePrefix6 = 64

// SourceBits6 is the length of the prefix that counts as one client over IPv6.
func (p *Policy) SourceBits6() int {
	if p.SourcePrefix6 == 0 {
		return DefaultSourcePrefix6
	}
	return p.SourcePrefix6
}

// A SourceRate is how many flows a client may open: Count in each Per, and at first Burst at once (a token bucket,
// net/netfilter/nft_limit.c). The zero value is no limit.
type SourceRate struct {
	Count uint32
	Per   time.Duration // a second, a minute, an hour or a day
	Burst uint32
}

// defaultBurst is that of nft and of hashlimit.
const defaultBurst = 5

// rateUnits are the words of nft and hashlimit.
var rateUnits = []struct {
	name string
	per  time.Duration
}{
	{"second", time.Second}, {"minute", time.Minute}, {"hour", time.Hour}, {"day", day},
}

// ParseSourceRate reads "15/minute burst 10"; without burst it is 5.
func ParseSourceRate(s string) (r SourceRate, err error) {
	wrong := fmt.Errorf("%q is not a rate: write for example \"15/minute\" or \"15/minute burst 10\"", s)
	fields := strings.Fields(s)
	if len(fields) != 1 && (len(fields) != 3 || fields[1] != "burst") {
		return r, wrong
	}
	number, unit, _ := strings.Cut(fields[0], "/")
	for _, u := range rateUnits {
		if unit == u.name || (unit != "" && (unit == u.name[:1] || unit == u.name[:3])) {
			r.Per = u.per
		}
	}
	if r.Per == 0 {
		return SourceRate{}, wrong
	}
	if r.Count, err = parseCount(number); err != nil {
		return SourceRate{}, wrong
	}
	r.Burst = defaultBurst
	if len(fields) == 3 {
		if r.Burst, err = parseCount(fields[2]); err != nil {
			return SourceRate{}, wrong
		}
	}
	return r, nil
}

// String is what ParseSourceRate reads, and "" for no limit.
func (r SourceRate) String() string {
	if r.Count == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%s burst %d", r.Count, r.Unit(), r.Burst)
}

// Unit is the word for Per.
func (r SourceRate) Unit() string {
	for _, u := range rateUnits {
		if r.Per == u.per {
			return u.name
		}
	}
	return ""
}

// Refill is how long an empty bucket takes to fill.
func (r SourceRate) Refill() time.Duration {
	if r.Count == 0 {
		return 0
	}
	return time.Duration(float64(r.Burst) * float64(r.Per) / float64(r.Count))
}

// maxCount keeps sums of numbers far from an overflow.
const maxCount = 1_000_000

var errLeadingZero = errors.New("has a leading zero, which some programs take for an octal number: leave it out")

// parseDecimal reads a number as everybody does.
func parseDecimal(s string) (uint64, error) {
	if len(s) > 1 && s[0] == '0' && strings.Trim(s, "0123456789") == "" {
		return 0, errLeadingZero
	}
	return strconv.ParseUint(s, 10, 64)
}

func parseCount(s string) (uint32, error) {
	n, err := parseDecimal(s)
	if errors.Is(err, errLeadingZero) {
		return 0, fmt.Errorf("%q %w", s, err)
	}
	if err != nil || n < 1 || n > maxCount {
		return 0, fmt.Errorf("%q is not a number from 1 to %d", s, maxCount)
	}
	return uint32(n), nil
}

func count(n uint32) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(n), 10)
}

func parsePercent(s string) (int, error) {
	number, ok := strings.CutSuffix(s, "%")
	n, err := parseDecimal(number)
	if !ok || err != nil || n < 1 || n > 100 {
		return 0, fmt.Errorf("%q is not a percentage from 1%% to 100%%", s)
	}
	return int(n), nil
}

// parseEndRate reads "200/s".
func parseEndRate(s string) (uint32, error) {
	number, ok := strings.CutSuffix(strings.TrimSuffix(strings.TrimSuffix(s, "econd"), "ec"), "/s")
	n, err := parseCount(number)
	if !ok || err != nil {
		return 0, fmt.Errorf("%q is not a rate: write for example 200/s", s)
	}
	return n, nil
}

func parsePrefixLength(s string) (int, error) {
	n, err := parseDecimal(strings.TrimPrefix(s, "/"))
	if err != nil || n < 1 || n > 128 {
		return 0, fmt.Errorf("%q is not the length of a prefix, 1 to 128", s)
	}
	return int(n), nil
}

// nameProblem is what is wrong with the name.
func (p *Policy) nameProblem() error {
	if !nameSyntax.MatchString(p.Name) || len(p.Name) > maxName {
		return fmt.Errorf("%q must start with a letter, go on with letters, digits, '_', '.' or '-', and have at most %d characters", p.Name, maxName)
	}
	return nil
}
