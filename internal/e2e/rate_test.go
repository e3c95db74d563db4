package e2e

import (
	"slices"
	"testing"
	"time"
)

// TestRate has connections that are due together: they end one after the other, in the order of their births.
func TestRate(t *testing.T) {
	t.Parallel()
	const (
		count = 60
		rate  = 20
		burst = 3               // at once, of a rate of 20, and one whose end was seen late
		slow  = 2 * time.Second // a busy machine
	)
	for _, top := range eachTopology(t) {
		port := top.listenOn(t, 8081)
		start(t, top.curfew, "--port", "8081", "--max-age", limit.String(), "--rate", "20/s")
		pairs := port.openSome(t, count)
		for _, p := range pairs[:count/2] {
			p.busy()
		}
		var ends []time.Time
		for i, p := range pairs {
			for name, end := range p.ends() {
				if err := end.WaitEnd(time.Until(pairs[0].born.to.Add(limit + count*time.Second/rate + patience))); err != nil {
					t.Fatalf("%s, connection %d, %s: %v", top.name, i, name, err)
				}
				if age := end.EndedAt().Sub(p.born.from); age < limit {
					t.Errorf("%s, connection %d, %s: ended early, at age %s", top.name, i, name, age)
				}
			}
			p.mustBeReset(t)
			ends = append(ends, p.client.EndedAt())
		}
		for i := range ends {
			if j := i + 3*burst; j < count && ends[i].After(ends[j]) {
				t.Errorf("%s: connection %d ended after connection %d", top.name, i, j)
			}
		}
		slices.SortFunc(ends, time.Time.Compare)
		for i := range ends {
			if j := i + rate + burst; j < count && ends[j].Sub(ends[i]) < time.Second {
				t.Errorf("%s: %d ends in %s", top.name, j-i+1, ends[j].Sub(ends[i]))
			}
		}
		if took := ends[count-1].Sub(ends[0]); took < (count-burst)*time.Second/rate {
			t.Errorf("%s: all %d took %s", top.name, count, took)
		}
		var last time.Time // by which all are ended, if no turn is lost
		for i, p := range pairs {
			if due := p.born.to.Add(limit + time.Duration(count-i)*time.Second/rate); due.After(last) {
				last = due
			}
		}
		if late := ends[count-1].Sub(last); late > slow {
			t.Errorf("%s: the last end was %s late", top.name, late)
		}
	}
}
