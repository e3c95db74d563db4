package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// Another implementation must read the same from the kernel, and find what we write in it.
func TestAgainstTiMo(t *testing.T) {
	h := trackingHost(t)
	h.Listen(t, "tcp", "[::]:81")
	h.Listen(t, "tcp", "[::]:82")
	h.Listen(t, "tcp", "[::]:83")
	for _, addr := range []string{"127.0.0.1:81", "[::1]:81", "127.0.0.1:82", "[::1]:82", "127.0.0.1:83", "127.0.0.1:84"} {
		dial(t, h, addr)
	}
	ours, theirs := openDumper(t, h), openOracle(t, h)
	var table *Table
	if err := h.Do(func() (err error) { table, err = OpenTable(); return err }); err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	for _, change := range []func(*Entry) error{
		func(*Entry) error { return nil },
		func(e *Entry) error { return table.Relabel(e, Bits(3, 126), Bits(3, 126)) },
		func(e *Entry) error { return table.Pin(e, 1000) },
		func(e *Entry) error {
			_, err := table.Renew(e, func(anew *Entry) { anew.Timeout, anew.Mark = 2000, 7 })
			return err
		},
	} {
		for _, e := range entries(t, ours, Filter{}) {
			if err := change(&e); err != nil {
				t.Fatal(err)
			}
		}
		compareDumps(t, entries(t, ours, Filter{}), theirs)
	}
}

func openOracle(t *testing.T, h interface{ Do(func() error) error }) *ct.Conn {
	t.Helper()
	var conn *ct.Conn
	if err := h.Do(func() (err error) { conn, err = ct.Dial(nil); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func compareDumps(t *testing.T, ours map[Tuple]Entry, theirs *ct.Conn) {
	t.Helper()
	flows, err := theirs.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for i := range flows {
		f := &flows[i]
		if f.TupleOrig.Proto.Protocol != unix.IPPROTO_TCP {
			continue
		}
		seen++
		e := ours[oracleTuple(&f.TupleOrig)]
		if got, want := show(&e), showOracle(f, &e); got != want {
			t.Errorf("we read\n%s, they\n%s", got, want)
		}
	}
	if seen != len(ours) || seen < 6 {
		t.Errorf("we read %d entries, they %d", len(ours), seen)
	}
}

func show(e *Entry) string {
	return fmt.Sprintf("%s / %s, id %#x, zone %d, status %#x, state %d, flags %#x %#x, mark %#x, birth %d, label %x, timeout %d",
		e.Orig, e.Reply, e.ID, e.Zone, e.Status, e.State, e.OrigFlags, e.ReplyFlags, e.Mark, e.Start, e.Label, e.Timeout)
}

// showOracle takes a timeout that is a second off for ours: the dumps were made one after the other.
func showOracle(f *ct.Flow, ours *Entry) string {
	e := Entry{
		Orig: oracleTuple(&f.TupleOrig), Reply: oracleTuple(&f.TupleReply), ID: f.ID, Zone: max(f.Zone, f.TupleOrig.Zone),
		Status: uint32(f.Status), Mark: f.Mark, Timeout: f.Timeout,
	}
	if e.Timeout == ours.Timeout-1 {
		e.Timeout++
	}
	if tcp := f.ProtoInfo.TCP; tcp != nil {
		e.State, e.OrigFlags, e.ReplyFlags = tcp.State, uint8(tcp.OriginalFlags>>8), uint8(tcp.ReplyFlags>>8)
	}
	if !f.Timestamp.Start.IsZero() {
		e.Start = f.Timestamp.Start.UnixNano()
	}
	copy(e.Label[:], f.Labels)
	return show(&e)
}

func oracleTuple(t *ct.Tuple) Tuple {
	return Tuple{
		Src: netip.AddrPortFrom(t.IP.SourceAddress, t.Proto.SourcePort),
		Dst: netip.AddrPortFrom(t.IP.DestinationAddress, t.Proto.DestinationPort),
	}
}
