package ctpolicy

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An Instant is a point in time that no clock step moves: nanoseconds since boot, suspended time included
// (CLOCK_BOOTTIME).
type Instant int64

// Add is the instant d later.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub is the time from j to i.
func (i Instant) Sub(j Instant) time.Duration { return time.Duration(i - j) }

// A Reading is both clocks read at once. Conntrack's timestamps are wall-clock time; everything that we decide is not.
type Reading struct {
	Boot Instant
	Wall int64 // nanoseconds since the epoch
}

// A Clock is the time. It is injected, so that ages and deadlines are tested without waiting.
type Clock interface{ Now() Reading }

// SystemClock is the machine's clock.
type SystemClock struct{}

// Now reads the wall clock between two readings of the boot clock, and again when the thread lost the CPU in between.
func (SystemClock) Now() Reading {
	var best Reading
	for gap, tries := time.Hour, 0; gap > 50*time.Microsecond && tries < 5; tries++ {
		before := bootTime()
		wall := time.Now().UnixNano()
		after := bootTime()
		if d := after.Sub(before); d < gap {
			gap, best = d, Reading{before.Add(d / 2), wall}
		}
	}
	return best
}

func bootTime() Instant {
	var ts unix.Timespec
	// It fails only for a clock that the kernel does not know; CLOCK_BOOTTIME is older than conntrack's timestamps.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return Instant(ts.Nano())
}

// BootID names this boot of the machine, so that a note of an earlier boot is not believed. It is empty when the
// kernel does not tell (no /proc).
func BootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(id)), "-")
	return first
}

// Note is the reading as kept in the table, for a person and for the next process to read.
func (r Reading) Note(bootID string) string {
	return fmt.Sprintf("clock: boot %s +%s = %s", bootID, time.Duration(r.Boot),
		time.Unix(0, r.Wall).UTC().Format(time.RFC3339Nano))
}

// ParseNote reads what Note wrote during the same boot; other notes are not ok.
func ParseNote(note, bootID string) (r Reading, ok bool) {
	rest, ok := strings.CutPrefix(note, "clock: boot "+bootID+" +")
	if !ok || bootID == "" {
		return Reading{}, false
	}
	since, at, _ := strings.Cut(rest, " = ")
	boot, err := time.ParseDuration(since)
	wall, err2 := time.Parse(time.RFC3339Nano, at)
	if err != nil || err2 != nil {
		return Reading{}, false
	}
	return Reading{Instant(boot), wall.UnixNano()}, true
}
