package command

import (
	"testing"
	"time"

	"curfew/rules"
)

func TestRepairsBackOff(t *testing.T) {
	var r repairs
	start := time.Unix(1000, 0)
	for i := range maxRepairs {
		if now := start.Add(time.Duration(i) * time.Second); !r.allow(now) {
			t.Fatalf("repair %d is refused", i)
		}
	}
	now := start.Add(maxRepairs * time.Second)
	if r.allow(now) {
		t.Error("one more is allowed within the minute")
	}
	if got := r.wait(now); got != 50*time.Second {
		t.Errorf("waits %v, want 50s", got)
	}
	if now = start.Add(time.Minute); r.wait(now) != 0 || !r.allow(now) || r.allow(now) {
		t.Error("a minute after the first one exactly one more must be allowed")
	}
}

func TestRepairsTellWho(t *testing.T) {
	r := repairs{who: rules.Change{Process: "nft", PID: 12}}
	if got := r.by(); got != "nft (pid 12)" {
		t.Errorf("%q", got)
	}
	if got := (&repairs{}).by(); got != "unknown" {
		t.Errorf("%q", got)
	}
}
