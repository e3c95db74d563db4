package reaper

import (
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// disturb is what Run does when it is told that something has happened.
func (w *world) disturb() { w.sweepAt = w.boot.Add(20 * time.Millisecond) }

// A flushed table, at any time before the deadline: the flows end on time all the same.
func TestFlushedTable(t *testing.T) {
	for name, every := range map[string]time.Duration{"busy": 13 * time.Millisecond, "idle": 0} {
		for _, before := range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond, 1500 * time.Millisecond, 6 * time.Second} {
			for _, p := range here {
				w := newWorld(t, limit(10*time.Second, 0))
				w.run(333 * time.Millisecond)
				c := w.open(p, 40000, port)
				if every > 0 {
					c.talk(every, time.Hour)
				}
				w.run(10*time.Second - before)
				w.flush()
				w.disturb()
				w.run(before - time.Millisecond)
				if e := w.find(c.tuple); before > time.Second && (e == nil || e.Orig != c.tuple || !ctpolicy.Pinned(&e.Entry) && before < 2*time.Second) {
					t.Errorf("%s, %s, %s before: entry %+v", name, p.name, before, e)
				}
				w.run(3 * time.Second)
				ended(t, c, 10*time.Second, 40*time.Millisecond)
				if r := w.one(); r.Method != MethodSocket || r.Age < 10*time.Second || r.Limit != ctpolicy.CauseMaxAge {
					t.Errorf("%s, %s: result %+v", name, p.name, r)
				}
				w.run(5 * w.r.Interval())
				w.drained()
				if len(w.r.orphans)+len(w.r.births) != 0 {
					t.Errorf("%d orphans and %d births are left", len(w.r.orphans), len(w.r.births))
				}
			}
		}
	}
}

// The server speaks first, so that the new entry is the wrong way round.
func TestFlushedAndReversed(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		w.run(6 * time.Second)
		w.pickUp(c)
		w.disturb()
		w.run(time.Second)
		if e := w.find(c.tuple); e == nil || e.Orig != c.tuple {
			t.Errorf("%s: entry %+v", p.name, e)
		}
		w.run(4 * time.Second)
		ended(t, c, 10*time.Second, 40*time.Millisecond)
		w.one()
	}
}

// It is flushed again and again, and always by packets brought back.
func TestFlushedOften(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(20*time.Second, 0))
		c := w.open(p, 40000, port)
		c.talk(7*time.Millisecond, time.Hour)
		w.run(6 * time.Second)
		for range 12 {
			w.flush()
			w.disturb()
			w.run(time.Second)
		}
		if n := len(w.r.births); n > 4 {
			t.Errorf("%d births are kept", n)
		}
		w.run(5 * time.Second)
		ended(t, c, 20*time.Second, 40*time.Millisecond)
		w.one()
	}
}

// A policy's idle limit counts from the last word, not from when the entry was made again.
func TestFlushedAndIdle(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(time.Hour, 30*time.Second))
		c := w.open(p, 40000, port)
		c.talk(100*time.Millisecond, 20*time.Second)
		w.run(40 * time.Second)
		w.flush()
		w.disturb()
		w.run(9 * time.Second)
		if e := w.find(c.tuple); e == nil || !c.established() {
			t.Fatalf("entry %+v", e)
		}
		w.run(10 * time.Second)
		ended(t, c, c.talked.Sub(c.born)+30*time.Second, 60*time.Millisecond)
		if r := w.one(); r.Limit != ctpolicy.CauseIdle {
			t.Errorf("result %+v", r)
		}
	}
}

// A new connection on the tuple of an old one never has its age, whenever the table is flushed and the port used again:
// the kernel fails the test when it is ended early.
func TestFlushAndPortReuse(t *testing.T) {
	calls := []string{"Dump", "Listeners", "List", "Get", "Lookup", "Create", "Again"}
	for _, call := range calls {
		for _, p := range here {
			for when := range 12 {
				for _, flushed := range []string{"before", "after", "both"} {
					w := newWorld(t, limit(10*time.Second, 0))
					w.cost = time.Microsecond // no two entries are born at once
					old := w.open(p, 40000, port)
					w.run(6300 * time.Millisecond)
					if flushed != "after" {
						w.flush()
					}
					var next *conn
					n := 0
					w.hook = func(name string) {
						if name != call || next != nil {
							return
						}
						if n++; n <= when {
							return
						}
						old.send(old.client, rst, "")
						next = w.open(p, 40000, port)
						if flushed != "before" {
							w.flush()
							next.send(next.client, data, "")
						}
					}
					w.disturb()
					w.run(9 * time.Second)
					if next == nil {
						old.send(old.client, rst, "")
						next = w.open(p, 40000, port)
					}
					w.run(12 * time.Second)
					ended(t, next, 10*time.Second, 2*w.r.Interval())
				}
			}
		}
	}
}

// An entry that was translated is not made again: without its translation it would break the connection.
func TestFlushedTranslation(t *testing.T) {
	for _, busy := range []bool{false, true} {
		w := newWorld(t, limit(10*time.Second, 0))
		src, dst := addrPort(hereAddr, 40000), addrPort(serverAddr, port)
		out := addrPort(hereAddr, 50000) // its source port was taken
		c := w.openVia(conntrack.Tuple{Src: src, Dst: dst}, conntrack.Tuple{Src: dst, Dst: out})
		w.run(6 * time.Second)
		w.flush()
		w.disturb()
		if busy {
			c.send(c.client, data, "") // NAT finds the same translation
		}
		w.run(time.Second)
		for _, change := range w.changes {
			if change == "Create" {
				t.Error("it is made again")
			}
		}
		w.run(4 * time.Second)
		ended(t, c, 10*time.Second, 40*time.Millisecond)
	}
}

// A forwarded connection in another zone may have the tuple of a socket here, and be older.
func TestFlushedOtherZone(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(serverHere, 40000, port)
	e := w.find(c.tuple)
	w.remove(e)
	e.Zone, e.ReplyZone, e.Start = 5, 5, e.Start-int64(8*time.Second)
	w.entries = append(w.entries, e)
	w.byTuple[zoned{e.Orig, 5}], w.byTuple[zoned{e.Reply, 5}] = e, e
	for range 2 {
		w.sweep() // which takes the entry in another zone for overdue; only the traces count here
	}
	for _, s := range []*tcp{c.client, c.server} {
		if t2 := w.r.memory.find(s.cookie); t2 != nil && t2.start != 0 {
			t.Errorf("a socket has the birth of an entry in another zone: %+v", t2)
		}
	}
}

// The reaper loses no flow although the clock is stepped while entries come and go.
func TestFlushedAndStepped(t *testing.T) {
	for _, by := range []time.Duration{-time.Hour, time.Hour} {
		w := newWorld(t, limit(20*time.Second, 0))
		c := w.open(serverHere, 40000, port)
		c.talk(50*time.Millisecond, time.Hour)
		w.run(8 * time.Second)
		w.offset += int64(by)
		w.flush()
		w.disturb()
		w.run(4 * time.Second)
		w.flush()
		w.disturb()
		w.run(4 * time.Second)
		if !c.established() {
			t.Fatal("ended early")
		}
		w.run(10 * time.Second)
		ended(t, c, 20*time.Second, 100*time.Millisecond)
	}
}

// Of two open sockets in one slot the first is known. When it is gone its slot is free.
func TestMemoryCollision(t *testing.T) {
	var m memory
	a, known := m.see(7, 100, 1)
	if known || a == nil {
		t.Fatal("a new socket is known, or has no room")
	}
	if b, _ := m.see(7+memorySlots, 200, 2); b != nil {
		t.Error("an open socket is forgotten")
	}
	if again, known := m.see(7, 300, 2); !known || again.seen != 100 {
		t.Errorf("known %v: %+v", known, again)
	}
	if m.find(7+memorySlots) != nil || m.find(7) != a || m.find(8) != nil || m.find(0) != nil {
		t.Error("found what is not known, or not what is")
	}
	if b, known := m.see(7+memorySlots, 500, 4); b == nil || known || b.seen != 500 || b.start != 0 {
		t.Errorf("%+v", b)
	}
}

func TestDumped(t *testing.T) {
	var d dumped
	for _, sum := range []uint64{0, 1, 2, 1 << 63, ^uint64(0)} {
		for _, translated := range []bool{false, true} {
			d.reset()
			if _, _, ok := d.find(sum); ok {
				t.Errorf("%x is found in nothing", sum)
			}
			d.add(sum, translated, 5)
			if start, nat, ok := d.find(sum); start != 5 || nat != translated || !ok {
				t.Errorf("%x: got %d, %v, %v", sum, start, nat, ok)
			}
			if _, _, ok := d.find(sum ^ 1<<40); ok {
				t.Errorf("%x is taken for another one", sum)
			}
		}
	}
}

// With as many flows as fit in half of it, nearly all are found.
func TestDumpedHasRoom(t *testing.T) {
	var d dumped
	var s seen
	s.reset()
	const many = 1 << 14
	for i := range many {
		d.add(s.sum(tupleNumber(i)), false, int64(i+1))
	}
	lost := 0
	for i := range many {
		start, _, ok := d.find(s.sum(tupleNumber(i)))
		if !ok {
			lost++
		} else if start != int64(i+1) {
			t.Fatalf("%d is taken for %d", i, start)
		}
	}
	if lost > many/20 {
		t.Errorf("%d of %d are not found", lost, many)
	}
}

// Many flows lose their entries at once: those that are due next have theirs again first, and all end on time, but for a few
// whose place in the memory another one had: those are late.
func TestManyFlushed(t *testing.T) {
	w := newWorld(t, limit(time.Minute, 0))
	w.cost = 100 * time.Microsecond
	var conns []*conn
	for i := range 3000 {
		conns = append(conns, w.open(serverHere, uint16(10000+i), port))
		w.run(5 * time.Millisecond)
	}
	w.run(10 * time.Second)
	w.flush()
	w.disturb()
	for range 10 {
		w.run(time.Second)
		w.disturb()
	}
	w.run(time.Minute)
	late := 0
	for _, c := range conns {
		if ended(t, c, time.Minute, 30*time.Second); c.ended.Sub(c.born) > time.Minute+time.Second {
			late++
		}
	}
	if late > 5 {
		t.Errorf("%d of %d flows ended late", late, len(conns))
	}
}

// A reload adopts what has no entry. That takes no age away.
func TestFlushedBeforeAReload(t *testing.T) {
	for _, p := range here {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		w.run(6 * time.Second)
		w.flush()
		w.use(limit(12*time.Second, 0))
		if made, err := w.r.Adopt(); made != 1 || err != nil {
			t.Errorf("%d adopted, %v", made, err)
		}
		w.run(7 * time.Second)
		ended(t, c, 12*time.Second, 40*time.Millisecond)
	}
}

// Of two sockets with the same addresses on two devices nobody knows which one an entry is of.
func TestFlushedTwoDevices(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	first := w.open(serverHere, 40000, port)
	w.run(6 * time.Second)
	w.flush()
	second := w.prepare(first.tuple, first.reply)
	first.server.state, first.client.state = second.server.state, second.client.state
	first.server.device, second.server.device = 3, 4
	w.newEntry(second, second.tuple, second.reply)
	w.run(6 * time.Second)
	if !second.established() {
		t.Error("the younger one is ended at the age of the other")
	}
	if tr := w.r.memory.find(second.server.cookie); tr == nil || tr.start != 0 && w.r.born(tr) < second.born {
		t.Errorf("it is taken for %+v", tr)
	}
}
