package ctpolicy

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// A PortRange is the ports First to Last, both included.
type PortRange struct{ First, Last uint16 }

// String is "389" or "8000-8010".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ParsePorts reads "389,636,8000-8010,ldaps", with the names of /etc/services. The answer is sorted, and neighbours are
// joined.
func ParsePorts(s string) ([]PortRange, error) {
	var ranges []PortRange
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRange(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return joinRanges(ranges), nil
}

func parseRange(s string) (PortRange, error) {
	if port, ok := servicePort(s); ok {
		return PortRange{port, port}, nil
	}
	from, to, isRange := strings.Cut(s, "-")
	first, err := parsePort(from, s)
	if err != nil {
		return PortRange{}, err
	}
	if !isRange {
		return PortRange{first, first}, nil
	}
	last, err := parsePort(to, s)
	if err != nil {
		return PortRange{}, err
	}
	if last < first {
		return PortRange{}, fmt.Errorf("range %q is reversed: did you mean %d-%d?", s, last, first)
	}
	return PortRange{first, last}, nil
}

// servicePort finds a name in /etc/services.
func servicePort(name string) (port uint16, ok bool) {
	if !strings.ContainsFunc(name, unicode.IsLetter) {
		return 0, false
	}
	n, err := net.LookupPort("tcp", name)
	return uint16(n), err == nil && n > 0
}

// parsePort reads a port that is part of a text.
func parsePort(s, whole string) (uint16, error) {
	n, err := parseDecimal(s)
	if errors.Is(err, errLeadingZero) {
		return 0, fmt.Errorf("%q %w", s, err)
	}
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("%q is not a port: write 1 to 65535 or a name from /etc/services, for example 389,636,8000-8010,ldaps", whole)
	}
	return uint16(n), nil
}

// joinRanges sorts, and joins ranges that touch or overlap.
func joinRanges(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var joined []PortRange
	for _, r := range ranges {
		if n := len(joined); n > 0 && int(r.First) <= int(joined[n-1].Last)+1 {
			joined[n-1].Last = max(joined[n-1].Last, r.Last)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// FormatPorts is the opposite of ParsePorts.
func FormatPorts(ranges []PortRange) string {
	parts := make([]string, len(ranges))
	for i, r := range ranges {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}
