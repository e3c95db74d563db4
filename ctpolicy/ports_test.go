package ctpolicy

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for _, c := range []struct {
		text string
		want []PortRange
	}{
		{"389", []PortRange{{389, 389}}},
		{"1-65535", []PortRange{{1, 65535}}},
		{"636,389", []PortRange{{389, 389}, {636, 636}}},
		{" 389 , 8000-8010 ", []PortRange{{389, 389}, {8000, 8010}}},
		{"80,81", []PortRange{{80, 81}}},
		{"90-99,80-89", []PortRange{{80, 99}}},
		{"80-99,85,99-100", []PortRange{{80, 100}}},
		{"80,82", []PortRange{{80, 80}, {82, 82}}},
		{"65535,1-65534", []PortRange{{1, 65535}}},
		{"https,ssh,1-9", []PortRange{{1, 9}, {22, 22}, {443, 443}}},
	} {
		if got, err := ParsePorts(c.text); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: got %v, %v; want %v", c.text, got, err, c.want)
		}
	}
}

func TestParsePortsRefuses(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", `"" is not a port`},
		{"389,", `"" is not a port`},
		{"0", `"0" is not a port: write 1 to 65535`},
		{"70000", `"70000" is not a port: write 1 to 65535`},
		{"99999999999999999999", "is not a port"},
		{"-5", `"-5" is not a port`},
		{"+5", `"+5" is not a port`},
		{"080", `"080" has a leading zero`},
		{"80-090", `"090" has a leading zero`},
		{"5-", `"5-" is not a port`},
		{"1-2-3", `"1-2-3" is not a port`},
		{"0-10", `"0-10" is not a port`},
		{"no-such-service", `"no-such-service" is not a port`},
		{"nosuch", `"nosuch" is not a port`},
		{"0x50", `"0x50" is not a port`},
		{"1 000", `"1 000" is not a port`},
		{"9000-8000", `range "9000-8000" is reversed: did you mean 8000-9000?`},
	} {
		if got, err := ParsePorts(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, %v; want an error with %q", c.text, got, err, c.want)
		}
	}
}

// What is parsed covers the same ports as what was written, is sorted, has gaps, and comes back from its text.
func TestPortsRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		written := randomRanges(rnd)
		parsed, err := ParsePorts(FormatPorts(written))
		if err != nil {
			t.Fatal(err)
		}
		for port := 1; port <= 65535; port++ {
			if contains(parsed, uint16(port)) != contains(written, uint16(port)) {
				t.Fatalf("%v became %v: port %d", written, parsed, port)
			}
		}
		for i := range parsed[1:] {
			if int(parsed[i].Last)+1 >= int(parsed[i+1].First) {
				t.Fatalf("%v became %v: not sorted and joined", written, parsed)
			}
		}
		again, err := ParsePorts(FormatPorts(parsed))
		if err != nil || !slices.Equal(again, parsed) {
			t.Fatalf("%v became %v, %v", parsed, again, err)
		}
	}
}

// randomRanges are up to 8 ranges that may touch and overlap, more often than not in the first 100 ports.
func randomRanges(rnd *rand.Rand) []PortRange {
	ranges := make([]PortRange, 1+rnd.IntN(8))
	for i := range ranges {
		limit := []int{100, 65535}[rnd.IntN(2)]
		a, b := 1+rnd.IntN(limit), 1+rnd.IntN(limit)
		ranges[i] = PortRange{uint16(min(a, b)), uint16(max(a, b))}
	}
	return ranges
}

func contains(ranges []PortRange, port uint16) bool {
	return slices.ContainsFunc(ranges, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

func FuzzParsePorts(f *testing.F) {
	f.Add("389,636,8000-8010")
	f.Add("1-65535,5")
	f.Add(",-")
	f.Fuzz(func(t *testing.T, text string) {
		ranges, err := ParsePorts(text)
		if err != nil {
			return
		}
		if again, err := ParsePorts(FormatPorts(ranges)); err != nil || !slices.Equal(again, ranges) {
			t.Fatalf("%q is %v, and that is %v, %v", text, ranges, again, err)
		}
	})
}
