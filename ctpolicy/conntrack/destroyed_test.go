package conntrack

import (
	"errors"
	"os"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

func openDestroyed(t *testing.T, h *netnstest.Host, ports ...PortRange) *Destroyed {
	t.Helper()
	var d *Destroyed
	if err := h.Do(func() (err error) { d, err = OpenDestroyed(ports); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// nextDestroyed is the original tuple of the next event.
func nextDestroyed(t *testing.T, d *Destroyed) Tuple {
	t.Helper()
	watchdog := time.AfterFunc(10*time.Second, func() { d.Close() })
	defer watchdog.Stop()
	_, payload, err := d.listener.Receive()
	if err != nil {
		t.Fatalf("no event came: %v", err)
	}
	var e Entry
	if ok, err := decode(payload, &e); !ok || err != nil {
		t.Fatalf("event: %v, %v", ok, err)
	}
	return e.Orig
}

func setEvents(t *testing.T, h *netnstest.Host, value string) {
	t.Helper()
	if err := h.SetSysctl("net.netfilter.nf_conntrack_events", value); err != nil {
		t.Fatal(err)
	}
}

func runConntrack(t *testing.T, h *netnstest.Host, args ...string) {
	t.Helper()
	if err := h.Run(t.Context(), "conntrack", args...); err != nil {
		t.Fatal(err)
	}
}

// endings are ways in which an entry goes away. Each has done it when it returns.
var endings = map[string]func(*testing.T, *netnstest.Host, *Entry){
	"flush": func(t *testing.T, h *netnstest.Host, _ *Entry) { runConntrack(t, h, "-F") },
	"delete": func(t *testing.T, h *netnstest.Host, _ *Entry) {
		runConntrack(t, h, "-D", "-p", "tcp", "--dport", "81")
	},
	"our own delete": func(t *testing.T, h *netnstest.Host, e *Entry) {
		onTable(t, h, func(table *Table) error { return table.Delete(e) })
	},
	"expiry": func(t *testing.T, h *netnstest.Host, e *Entry) {
		onTable(t, h, func(table *Table) error { return table.Pin(e, 1) })
		d := openDumper(t, h)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if _, there := entries(t, d, Filter{})[e.Orig]; !there {
				return
			}
			if time.Now().After(deadline) {
				t.Fatal("the entry doesn't expire")
			}
		}
	},
}

func onTable(t *testing.T, h *netnstest.Host, fn func(*Table) error) {
	t.Helper()
	err := h.Do(func() error {
		table, err := OpenTable()
		if err != nil {
			return err
		}
		defer table.Close()
		return fn(table)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// When the kernel tells of an end: it depends on how things were at the entry's birth. (That it does not tell with 2 and
// without a listener on the whole machine can't be tested where others may listen.)
func TestDestroyedTells(t *testing.T) {
	elsewhere := trackingHost(t)
	for _, c := range []struct {
		events, later string // the sysctl at birth and afterwards
		listener      string // at birth
		tells         bool
	}{
		{"0", "0", "here", false},
		{"0", "1", "here", false},
		{"1", "1", "", true},
		{"1", "0", "", true},
		{"1", "1", "here", true},
		{"2", "0", "here", true},
		{"2", "2", "here", true},
		{"2", "2", "elsewhere", true},
	} {
		h := trackingHost(t)
		h.Listen(t, "tcp", "127.0.0.1:81")
		setEvents(t, h, c.events)
		var d *Destroyed
		switch c.listener {
		case "here":
			d = openDestroyed(t, h, PortRange{81, 81})
		case "elsewhere":
			openDestroyed(t, elsewhere, PortRange{81, 81})
		}
		first := origOf(dial(t, h, "127.0.0.1:81"))
		if d == nil {
			d = openDestroyed(t, h, PortRange{81, 81})
		}
		setEvents(t, h, c.later)
		runConntrack(t, h, "-F")

		want := first
		if !c.tells { // the end of another flow, which is told, shows that nothing was told before
			setEvents(t, h, "1")
			want = origOf(dial(t, h, "127.0.0.1:81"))
			runConntrack(t, h, "-F")
		}
		if got := nextDestroyed(t, d); got != want {
			t.Errorf("%+v: event of %v; the flows are %v and %v", c, got, first, want)
		}
	}
}

func TestDestroyedTellsOfEachEnding(t *testing.T) {
	for name, end := range endings {
		h := trackingHost(t)
		setEvents(t, h, "1")
		h.Listen(t, "tcp", "127.0.0.1:81")
		d := openDestroyed(t, h, PortRange{81, 81})
		flow := origOf(dial(t, h, "127.0.0.1:81"))
		e := entries(t, openDumper(t, h), Filter{})[flow]
		end(t, h, &e)
		if got := nextDestroyed(t, d); got != flow {
			t.Errorf("%s: event of %v, want %v", name, got, flow)
		}
	}
}

// Flows of other ports, and those that have closed, end without an event.
func TestDestroyedIgnores(t *testing.T) {
	h := trackingHost(t)
	setEvents(t, h, "1")
	for _, addr := range []string{"127.0.0.1:81", "[::1]:81", "127.0.0.1:90"} {
		h.Listen(t, "tcp", addr)
	}
	d := openDestroyed(t, h, PortRange{70, 81})
	dumper := openDumper(t, h)
	for _, ignored := range []func(){
		func() { dial(t, h, "127.0.0.1:90") },
		func() { sendUDP(t, h) },
		func() {
			client := dial(t, h, "127.0.0.1:81")
			if err := client.Reset(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the entry sees the reset", func() bool { return entries(t, dumper, Filter{})[origOf(client)].State == StateClose })
		},
	} {
		ignored()
		runConntrack(t, h, "-F")
	}
	for _, addr := range []string{"[::1]:81", "127.0.0.1:81"} {
		want := origOf(dial(t, h, addr))
		runConntrack(t, h, "-F")
		if got := nextDestroyed(t, d); got != want {
			t.Errorf("event of %v, want only %v", got, want)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so: %s", what)
		}
	}
}

func TestDestroyedNext(t *testing.T) {
	h := trackingHost(t)
	setEvents(t, h, "1")
	h.Listen(t, "tcp", "127.0.0.1:81")
	d := openDestroyed(t, h, PortRange{81, 81})
	for range 5 {
		dial(t, h, "127.0.0.1:81")
	}
	runConntrack(t, h, "-F")
	if err := d.Next(); err != nil {
		t.Fatal(err)
	}
	last := origOf(dial(t, h, "127.0.0.1:81"))
	runConntrack(t, h, "-F")
	if got := nextDestroyed(t, d); got != last {
		t.Errorf("one flush counts twice: after it comes %v, want %v", got, last)
	}
	answer := make(chan error)
	go func() { answer <- d.Next() }()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-answer; !errors.Is(err, os.ErrClosed) {
		t.Errorf("next after close: %v", err)
	}
}

// The longest filter fits where optmem_max is as it was for many years; one that doesn't is replaced.
func TestDestroyedFilterFits(t *testing.T) {
	if !kernelAtLeast(t, 6, 8) {
		return // the sysctl is the whole machine's
	}
	h := trackingHost(t)
	setEvents(t, h, "1")
	for _, addr := range []string{"127.0.0.1:81", "127.0.0.1:90"} {
		h.Listen(t, "tcp", addr)
	}
	var odd []PortRange
	for port := uint16(1001); len(odd) < maxFilterRanges-1; port += 2 {
		odd = append(odd, PortRange{port, port})
	}
	odd = append(odd, PortRange{81, 81})
	for _, c := range []struct {
		optmem string
		ports  []PortRange
		exact  bool
	}{
		{"20480", odd, true},
		{"20480", append(odd, PortRange{82, 82}), false},
		{"4096", odd, false},
	} {
		if err := h.SetSysctl("net.core.optmem_max", c.optmem); err != nil {
			t.Fatal(err)
		}
		d := openDestroyed(t, h, c.ports...)
		var flows []Tuple
		for _, addr := range []string{"127.0.0.1:90", "127.0.0.1:81"} {
			flows = append(flows, origOf(dial(t, h, addr)))
			runConntrack(t, h, "-F")
		}
		if got := nextDestroyed(t, d); got == flows[0] == c.exact {
			t.Errorf("optmem_max %s, %d ranges: event of %v", c.optmem, len(c.ports), got)
		}
	}
}
