package reaper

import (
	"slices"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// inZone makes one more entry of a connection, in a zone of its own.
func (w *world) inZone(c *conn, zone uint16) *entry {
	e := *w.find(c.tuple)
	e.Zone, e.ID = zone, 7777
	w.entries = append(w.entries, &e)
	w.byTuple[zoned{e.Orig, zone}], w.byTuple[zoned{e.Reply, zone}] = &e, &e
	return &e
}

// somebodyElse makes an older connection with the same addresses, in another zone. It has no sockets here.
func (w *world) somebodyElse(c *conn, zone uint16, age time.Duration) (*conn, *entry) {
	e, other := w.inZone(c, zone), *c
	e.Start, e.conn = e.Start-int64(age), &other
	other.born, other.talked = c.born.Add(-age), c.talked.Add(-age)
	client, server := *c.client, *c.server
	client.here, server.here = false, false
	other.client, other.server = &client, &server
	w.conns = slices.Insert(w.conns, 0, &other)
	return &other, e
}

// The sockets are those of zone 0. The other one is left to the rule, and its end here is not taken for closed.
func TestSocketsBelongToZoneZero(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		other, e := w.somebodyElse(c, 5, 4*time.Second)
		sent := w.sends()
		w.run(9900 * time.Millisecond)
		if sent[addrPort(hereAddr, port).String()]+sent[addrPort(hereAddr, 40000).String()] != 0 {
			t.Errorf("challenges %v", sent)
		}
		if !c.established() || !other.established() {
			t.Fatal("ended by the entry of another zone")
		}
		r := w.one()
		if r.Method != MethodNone || !strings.Contains(r.Reason, "zone 0") || !ctpolicy.Pinned(&e.Entry) || e.State != conntrack.StateEstablished {
			t.Errorf("result %+v, entry %+v", r, e)
		}
		w.run(time.Second)
		ended(t, c, 10*time.Second, 0)
	}
}

// One connection passes this host in two zones. It ends once, and is reported with both entries.
func TestFlowInTwoZones(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		e := w.inZone(c, 5)
		w.run(9999 * time.Millisecond)
		w.hook = func(call string) {
			if call == "Closed" && !c.open() {
				e.State = conntrack.StateClose // its reset came this way, too
			}
		}
		w.run(15 * time.Second)
		ended(t, c, 10*time.Second, 0)
		for _, r := range w.results {
			if r.Method == MethodNone || r.Late > 100*time.Millisecond {
				t.Errorf("result %+v", r)
			}
		}
		w.drained()
	}
}

// A flow that is known in its zone only has the sockets.
func TestSocketsOfAZone(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		w.inZone(c, 5)
		w.remove(w.find(c.tuple))
		w.run(11 * time.Second)
		ended(t, c, 10*time.Second, 0)
		if r := w.results[0]; r.Method != MethodSocket {
			t.Errorf("result %+v", r)
		}
	}
}

// The sockets are bound to a device, as in a VRF.
func TestBoundSockets(t *testing.T) {
	for _, p := range here {
		for _, overdue := range []bool{false, true} {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(p, 40000, port)
			c.client.device, c.server.device = 3, 3
			if overdue { // so that the first strike comes before the first list
				w.kill()
				w.run(10500 * time.Millisecond)
				w.start()
			}
			w.run(11 * time.Second)
			ended(t, c, 10*time.Second, 500*time.Millisecond)
			if r := w.one(); r.Method != MethodSocket {
				t.Errorf("result %+v", r)
			}
		}
	}
}

// The first strike may come in the middle of the first dump.
func TestBoundSocketsBeforeTheFirstList(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	c.server.device = 3
	w.kill()
	w.run(10100 * time.Millisecond)
	w.start()
	it := w.r.newItem(&w.entries[0].Entry, c.policy, w.r.judge(c.policy, &w.entries[0].Entry, w.boot), w.boot)
	w.r.schedule.add(it)
	w.r.serve()
	ended(t, c, 10*time.Second, 150*time.Millisecond)
}

func TestBoundOrphan(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	c.server.device, c.untracked = 3, true
	w.flush()
	w.run(13 * time.Second)
	ended(t, c, 10*time.Second, 2*time.Second)
}

// The same addresses on two devices: nobody knows whose entry it is, so none is touched.
func TestSameAddressesOnTwoDevices(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	other := w.prepare(c.tuple, c.reply)
	other.untracked = true
	c.client.state, c.server.state = other.client.state, other.server.state // prepare takes it for a reuse
	c.server.device, other.server.device = 3, 4
	w.run(9 * time.Second)
	w.hook = func(call string) {
		if call == "Destroy" {
			t.Error("a socket is destroyed")
		}
	}
	w.run(5 * time.Second)
	if r := w.results[0]; r.Method != MethodNone || !strings.Contains(r.Reason, "two devices") {
		t.Errorf("result %+v", r)
	}
}
