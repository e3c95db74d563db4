package challenge

import (
	"testing"
	"testing/quick"
)

func check(t *testing.T, property any) {
	t.Helper()
	if err := quick.Check(property, &quick.Config{MaxCount: 100_000}); err != nil {
		t.Error(err)
	}
}

// TestAtMostOneAttemptInWindow takes the largest window that TCP can have.
func TestAtMostOneAttemptInWindow(t *testing.T) {
	const window = 0xffff << 14
	check(t, func(base, next uint32) bool {
		in := 0
		for i := range Attempts {
			if (numbers{seq: base}).forAttempt(i).seq-next <= window {
				in++
			}
		}
		return in <= 1
	})
}

// TestOneAttemptLooksOld in both numbers, whatever the true ones are.
func TestOneAttemptLooksOld(t *testing.T) {
	check(t, func(seq, ack, next, unacked uint32) bool {
		old := 0
		for i := range Attempts {
			n := numbers{seq: seq, ack: ack}.forAttempt(i)
			if int32(n.seq-next) < 0 && int32(n.ack-unacked) < 0 {
				old++
			}
		}
		return old == 1
	})
}

func TestAttemptsDiffer(t *testing.T) {
	base := numbers{seq: 1, ack: 2}
	seen := map[uint32]int{}
	for i := range 100 {
		n := base.forAttempt(i)
		if other, ok := seen[n.seq]; ok {
			t.Errorf("attempts %d and %d have the same sequence number", other, i)
		}
		seen[n.seq] = i
	}
	if base.forAttempt(0) != base {
		t.Error("attempt 0 does not have the base numbers")
	}
}
