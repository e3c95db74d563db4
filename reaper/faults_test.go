package reaper

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

var errBroken = errors.New("broken")

var allCalls = []string{
	"Dump", "Get", "Again", "Pin", "Create", "Renew", "Assure", "MarkClosed", "Delete", "Lookup", "List", "Listeners", "Destroy", "Send",
	"Closed", "Hold",
}

func faults(call string) []error {
	errs := []error{unix.EPERM, unix.ENOBUFS, errBroken}
	if call == "Dump" {
		errs = append(errs, conntrack.ErrInterrupted)
	}
	return errs
}

// Each call fails once, at each of its occasions. Nothing ends early, and every flow ends.
func TestOneFault(t *testing.T) {
	for _, policy := range []ctpolicy.Policy{limit(10*time.Second, 0), limit(0, 10*time.Second), limit(10*time.Second, 10*time.Second)} {
		for _, call := range allCalls {
			for _, fault := range faults(call) {
				t.Run(fmt.Sprint(policy.String(), " ", call, " ", fault), func(t *testing.T) {
					for when := range 40 {
						w := newWorld(t, policy)
						n := 0
						w.fault = func(c string) error {
							if c != call || w.boot.Sub(w.conns[0].born) < 4*time.Second {
								return nil
							}
							if n++; n != when+1 {
								return nil
							}
							return fault
						}
						conns := openAll(w)
						w.run(15 * time.Second)
						for _, c := range conns {
							ended(t, c, 10*time.Second, 4*time.Second)
						}
						for _, r := range w.results {
							if r.Method == MethodNone {
								t.Errorf("one fault, one survivor: %+v", r)
							}
						}
						w.drained()
						if n <= when {
							break
						}
					}
				})
			}
		}
	}
}

// A call fails for ever. Nothing ends early and nothing is forgotten: a flow that lives on is logged as a survivor, unless
// the sweep itself fails, which is an error.
func TestLastingFault(t *testing.T) {
	for _, policy := range []ctpolicy.Policy{limit(10*time.Second, 0), limit(0, 10*time.Second), limit(10*time.Second, 10*time.Second)} {
		for _, call := range allCalls {
			for _, fault := range faults(call) {
				t.Run(fmt.Sprint(policy.String(), " ", call, " ", fault), func(t *testing.T) {
					w := newWorld(t, policy)
					w.fault = func(c string) error {
						if c == call {
							return fault
						}
						return nil
					}
					conns := openAll(w)
					w.run(13 * time.Second)
					survivors := map[conntrack.Tuple]bool{}
					for _, r := range w.results {
						survivors[r.Flow] = survivors[r.Flow] || r.Method == MethodNone
					}
					for _, c := range conns {
						if c.open() && !survivors[c.tuple] && len(w.errs) == 0 {
							t.Errorf("%s lives on, and nobody says so", c)
						}
					}
					w.fault = nil
					w.run(restAfter + 4*time.Second)
					for _, c := range conns {
						if policy.Idle == 0 || c.client.here || c.server.here { // else nobody knows it any more
							ended(t, c, 10*time.Second, restAfter+7*time.Second)
						}
					}
				})
			}
		}
	}
}

func openAll(w *world) []*conn {
	var conns []*conn
	for i, p := range places {
		conns = append(conns, w.open(p, uint16(40000+i), port))
	}
	return conns
}
