package ctpolicy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"curfew/ctpolicy/conntrack"
)

func tupleFrom(client string, sourcePort int) conntrack.Tuple {
	return conntrack.Tuple{
		Src: netip.AddrPortFrom(netip.MustParseAddr(client), uint16(sourcePort)),
		Dst: netip.MustParseAddrPort("10.0.0.3:389"),
	}
}

func TestAgeLimit(t *testing.T) {
	tuple := tupleFrom("10.0.0.2", 40000)
	for _, maxAge := range []time.Duration{time.Second, time.Minute, time.Hour, MaxLimit} {
		plain := Policy{MaxAge: maxAge}
		if got := plain.AgeLimit(tuple); got != maxAge {
			t.Errorf("without jitter: %s, want %s", got, maxAge)
		}
		for _, jitter := range []int{1, 10, 100} {
			p := Policy{MaxAge: maxAge, Jitter: jitter, Grace: time.Hour}
			for port := range 2000 {
				got := p.AgeLimit(tupleFrom("10.0.0.2", port))
				if got < maxAge || got >= p.LastAge()-p.Grace {
					t.Fatalf("%s, %d %%: %s", maxAge, jitter, got)
				}
			}
		}
	}
	if got := (&Policy{Idle: time.Hour}).AgeLimit(tuple); got != 0 {
		t.Errorf("without max_age: %s", got)
	}
}

// The hash is part of what a policy says: another version of it would move every deadline.
func TestScatterStaysAsItIs(t *testing.T) {
	for _, c := range []struct {
		src, dst string
		want     uint64
	}{
		{"10.0.0.2:40000", "10.0.0.3:389", 0x382c290b021c50f9},
		{"[::ffff:10.0.0.2]:40000", "10.0.0.3:389", 0x382c290b021c50f9}, // the same
		{"[fd00::1]:40000", "[fd00::2]:389", 0xfdb55dae936e5126},
	} {
		tuple := conntrack.Tuple{Src: netip.MustParseAddrPort(c.src), Dst: netip.MustParseAddrPort(c.dst)}
		if got := scatter(tuple); got != c.want {
			t.Errorf("%s: %#x, want %#x", tuple, got, c.want)
		}
	}
}

// Busy clients take consecutive ports, or every second one (__inet_hash_connect prefers even ones).
func TestJitterSpreads(t *testing.T) {
	const flows, buckets = 1000, 10
	p := Policy{MaxAge: time.Hour, Jitter: 20}
	for _, client := range []string{"10.0.0.2", "192.168.1.77", "fd00::1"} {
		for _, step := range []int{1, 2, 16, 64} {
			var count [buckets]int
			for i := range flows {
				share := p.AgeLimit(tupleFrom(client, 1024+i*step%64000)) - p.MaxAge
				count[share*buckets/(p.LastAge()-p.MaxAge)]++
			}
			for i, n := range count { // 100 are expected, with a standard deviation of 9.5
				if n < 60 || n > 140 {
					t.Errorf("%s, every %d. port: bucket %d has %d of %d flows: %v", client, step, i, n, flows, count)
				}
			}
		}
	}
}

// Consecutive ports end in no order that a client could see.
func TestJitterSpreadsNeighbours(t *testing.T) {
	p := Policy{MaxAge: time.Hour, Jitter: 100}
	near := 0
	for port := 40000; port < 41000; port++ {
		d := p.AgeLimit(tupleFrom("10.0.0.2", port)) - p.AgeLimit(tupleFrom("10.0.0.2", port+1))
		if d.Abs() < p.MaxAge/100 {
			near++
		}
	}
	if near > 50 { // 20 are expected
		t.Errorf("%d of 1000 neighbours end within a hundredth of the spread", near)
	}
}

func TestAgeLimitDoesNotAllocate(t *testing.T) {
	p := Policy{MaxAge: time.Hour, Jitter: 10}
	tuple := tupleFrom("fd00::1", 40000)
	if n := testing.AllocsPerRun(100, func() { p.AgeLimit(tuple) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// An entry lasts longer than its flow may.
func TestEntryTimeoutOfTheLastAge(t *testing.T) {
	for _, p := range []Policy{
		{MaxAge: time.Hour, Jitter: 50},
		{MaxAge: time.Hour, Grace: 10 * time.Minute},
		{MaxAge: time.Hour, Jitter: 50, Grace: 10 * time.Minute},
	} {
		if got, want := p.EntryTimeout(), p.LastAge()+Window; got != want || !p.Outlived() {
			t.Errorf("%s: %s, want %s", &p, got, want)
		}
	}
}

func ExamplePolicy_AgeLimit() {
	p := Policy{MaxAge: time.Hour, Jitter: 10}
	for _, port := range []int{40000, 40001, 40002} {
		fmt.Println(p.AgeLimit(tupleFrom("10.0.0.2", port)).Round(time.Second))
	}
	// Output:
	// 1h1m19s
	// 1h0m33s
	// 1h1m33s
}
