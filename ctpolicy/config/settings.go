package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"curfew/ctpolicy"
)

// A Setting is a key of the file beside policies, and a flag (with '-' for '_').
type Setting struct {
	Name  string
	Usage string // its placeholder in backquotes
	// Syntax is a regular expression for a value; Words are all values where there are few.
	Syntax string
	Words  []string
	// Get is the value as Set reads it.
	Get func(f *File) string
	Set func(f *File, value string) error
}

// Default is the value where none is given.
func (s *Setting) Default() string { return s.Get(New()) }

// Settings are all keys beside policies.
var Settings = []Setting{
	{
		Name: "existing", Usage: "connections that are open already: `adopt` or reset", Words: existing,
		Get: func(f *File) string {
			if f.Reset {
				return "reset"
			}
			return "adopt"
		},
		Set: func(f *File, v string) error {
			if !slices.Contains(existing, v) {
				return fmt.Errorf("%q must be adopt or reset", v)
			}
			f.Reset = v == "reset"
			return nil
		},
	},
	{
		Name: "adopt", Usage: "for this `TIME`, or 0, pick up forwarded connections that conntrack does not know; later ones are reset",
		Syntax: `^(0|` + strings.Trim(ctpolicy.FindKey("max_age").Syntax, "^$") + `)$`,
		Get: func(f *File) string {
			if f.Adopt == 0 {
				return "0"
			}
			return ctpolicy.FormatDuration(f.Adopt)
		},
		Set: func(f *File, v string) (err error) {
			var d time.Duration
			if v != "0" {
				d, err = ctpolicy.ParseLimit(v)
			}
			f.Adopt = d
			return err
		},
	},
	{
		Name: "register_size", Usage: "`FLOWS` that the fallback can hold for each of IPv4 and IPv6",
		Syntax: `^[1-9][0-9]*$`,
		Get:    func(f *File) string { return strconv.FormatUint(uint64(f.RegisterSize), 10) },
		Set: func(f *File, v string) error {
			n, err := parseNumber(v, 1<<24)
			if err != nil {
				return fmt.Errorf("%q must be 1 to %d", v, 1<<24)
			}
			f.RegisterSize = n
			return nil
		},
	},
	{
		Name: "mark", Usage: "packet `MARK` of our challenges",
		Syntax: `^(0[xX][0-9A-Fa-f]+|[1-9][0-9]*)$`,
		Get:    func(f *File) string { return fmt.Sprintf("%#x", f.Mark) },
		Set: func(f *File, v string) error {
			n, err := parseNumber(v, 1<<32-1)
			if err != nil {
				return fmt.Errorf("%q must be 1 to %#x", v, uint32(1<<32-1))
			}
			f.Mark = n
			return nil
		},
	},
}

var existing = []string{"adopt", "reset"}

var errNumber = errors.New("not such a number")

// parseNumber reads 1 to most, decimal or with 0x; a leading zero could mean octal.
func parseNumber(s string, most uint64) (uint32, error) {
	base := 10
	digits, hex := strings.CutPrefix(strings.ToLower(s), "0x")
	if hex {
		base = 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil || n < 1 || n > most || (!hex && digits[0] == '0') {
		return 0, errNumber
	}
	return uint32(n), nil
}

func findSetting(name string) *Setting {
	for i := range Settings {
		if Settings[i].Name == name {
			return &Settings[i]
		}
	}
	return nil
}
