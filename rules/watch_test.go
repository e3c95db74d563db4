package rules_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
	"curfew/rules"
)

// watch collects the changes of a host's table.
func watch(t *testing.T, h *netnstest.Host) <-chan rules.Change {
	t.Helper()
	var w *rules.Watch
	in(t, h, func() (err error) { w, err = rules.OpenWatch(); return err })
	changes, done := make(chan rules.Change), make(chan error, 1)
	stop := make(chan bool)
	go func() {
		for {
			c, err := w.Next()
			if err != nil {
				done <- err
				return
			}
			select {
			case changes <- c:
			case <-stop:
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("next after close: %v", err)
		}
	})
	return changes
}

func next(t *testing.T, changes <-chan rules.Change) rules.Change {
	t.Helper()
	c, err := await(changes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func await(changes <-chan rules.Change) (rules.Change, error) {
	select {
	case c := <-changes:
		return c, nil
	case <-time.After(10 * time.Second):
		return rules.Change{}, errors.New("no change was seen")
	}
}

// change runs nft and answers its process.
func change(t *testing.T, h *netnstest.Host, input string) (pid int) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(input)
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("nft %.200s: %v", input, err)
	}
	return cmd.Process.Pid
}

func TestWatch(t *testing.T) {
	for name, edit := range map[string]string{
		"flush ruleset":      "flush ruleset",
		"delete table":       "delete table inet curfew",
		"dormant":            "add table inet curfew { flags dormant; }",
		"flush chain":        "flush chain inet curfew ldap-end",
		"insert rule":        "insert rule inet curfew input accept",
		"add chain":          "add chain inet curfew more",
		"policy":             "add chain inet curfew input { policy drop; }",
		"add port":           "add element inet curfew end-by-port { 99 : jump ldap-end }",
		"delete address":     "flush set inet curfew ssh-from4",
		"delete set":         "delete set inet curfew unused",
		"add object":         "add counter inet curfew more",
		"with other tables":  "add table inet other; add counter inet curfew more; add table ip other",
		"with a heartbeat":   "add element inet curfew alive { tcp timeout 1s }; add chain inet curfew more; add element inet curfew adopt { tcp timeout 1s }",
		"delete the set":     "flush chain inet curfew end-prerouting; flush chain inet curfew ldap-end; flush chain inet curfew web-end; flush chain inet curfew end-output; delete set inet curfew closed4",
		"with a thousand":    "add set inet curfew big { type mark; flags interval; }; add element inet curfew big { 1-1000 }",
		"delete base chain":  "delete chain inet curfew probe",
		"table deleted, new": "delete table inet curfew; add table inet curfew",
	} {
		h := netnstest.NewHost(t, "host")
		in(t, h, func() error { return rules.Apply(config(t)) })
		change(t, h, "add set inet curfew unused { type mark; }")
		changes := watch(t, h)
		pid := change(t, h, edit)
		if c := next(t, changes); c != (rules.Change{PID: pid, Process: "nft"}) {
			t.Errorf("%s: %+v, want process %d", name, c, pid)
		}
	}
}

// The last transaction shows that the ones before were not seen.
func TestWatchIgnores(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	changes := watch(t, h)
	for range 2 {
		in(t, h, func() error { return rules.Beat(1, time.Now()) })
	}
	in(t, h, rules.StopBeat)
	for _, edit := range []string{
		"add table inet other { chain c { counter; }; set alive { type mark; }; }",
		"add table ip curfew { chain input { counter; }; set s { type mark; elements = { 1 }; }; }",
		"add element inet curfew adopt { tcp timeout 5m }",
		"add element inet curfew held { 1 . 2 timeout 5m }",
		"add element inet curfew flows4 { 10.0.0.1 . 1 . 10.0.0.2 . 389 timeout 1h }",
		"flush set inet curfew flows4",
		"delete table ip curfew",
	} {
		change(t, h, edit)
	}
	pid := change(t, h, "add chain inet curfew last")
	if c := next(t, changes); c.PID != pid {
		t.Errorf("saw %+v, want only that of process %d", c, pid)
	}
}

// What we do ourselves bears our own process, whichever of its threads it was.
func TestWatchKnowsOurselves(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	changes := watch(t, h)
	var seen rules.Change
	in(t, h, func() (err error) {
		// The thread must still be there when the message is read.
		if err = rules.Apply(config(t)); err == nil {
			seen, err = await(changes)
		}
		return err
	})
	if seen.PID != os.Getpid() || seen.Lost {
		t.Errorf("saw %+v, want process %d", seen, os.Getpid())
	}
}

// More changes than there is room for, while nobody reads; they are those of another table.
func TestWatchSaysWhatWasLost(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	changes := watch(t, h)
	change(t, h, "add chain inet curfew first; add table inet other; add set inet other s { type mark; }")
	var elements strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&elements, "%d,", i)
	}
	for range 15 {
		change(t, h, "add element inet other s { "+elements.String()+" }; flush set inet other s")
	}
	if c := next(t, changes); c.Process != "nft" || c.Lost {
		t.Errorf("first saw %+v", c)
	}
	if c := next(t, changes); c != (rules.Change{Lost: true}) {
		t.Errorf("then saw %+v", c)
	}
	pid := change(t, h, "add chain inet curfew last")
	if c := next(t, changes); c.PID != pid {
		t.Errorf("at last saw %+v, want process %d", c, pid)
	}
}
