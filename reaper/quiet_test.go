package reaper

import (
	"testing"
	"time"
)

// The entry has a timeout that is not the policy's, and neither end is here: its pause counts from when it was first seen.
func TestForeignTimeout(t *testing.T) {
	for _, base := range []time.Duration{1800 * time.Second, 30 * time.Second, 500_000 * time.Second} {
		w := newWorld(t, limit(0, 10*time.Second))
		talking := w.open(forwarded, 40000, port)
		silent := w.open(forwarded, 40001, port)
		for _, c := range []*conn{talking, silent} {
			e := w.find(c.tuple)
			e.Label.Clear(126)
			e.base, e.expires = base, w.boot.Add(base)
		}
		talking.talk(3*time.Second, time.Hour)
		w.run(30 * time.Second)
		if !talking.established() {
			t.Errorf("%s: the one that talks has ended", base)
		}
		if silent.open() {
			t.Errorf("%s: the silent one is open", base)
		}
		if len(w.r.quiet) != 1 {
			t.Errorf("%s: %d are remembered", base, len(w.r.quiet))
		}
	}
}
