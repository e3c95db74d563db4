package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// answer builds a struct inet_diag_msg with its attributes.
func answer(family uint8, state State, local, remote string, full bool) []byte {
	id := newID(netip.MustParseAddrPort(local), netip.MustParseAddrPort(remote), 3)
	putCookie(&id, 0x100000002)
	b := append([]byte{family, byte(state), 0, 0}, id[:]...)
	for _, field := range []uint32{0, 0, 0, 1000, 4711} {
		b = binary.NativeEndian.AppendUint32(b, field)
	}
	if full {
		b, _ = nl.AppendAttr(b, attrShutdown, []byte{0})
	}
	b, _ = nl.AppendAttr(b, 999, []byte("unknown"))
	return b
}

func withInfo(b []byte) []byte {
	info := make([]byte, infoSize+100)
	binary.NativeEndian.PutUint32(info[infoLastDataSent:], 1)
	binary.NativeEndian.PutUint32(info[infoLastDataRecv:], 2)
	binary.NativeEndian.PutUint32(info[infoLastAckRecv:], 3)
	b, _ = nl.AppendAttr(b, attrInfo, info)
	return b
}

func TestDecode(t *testing.T) {
	var s Socket
	b := withInfo(answer(unix.AF_INET6, Established, "[::ffff:10.0.0.1]:389", "[::ffff:10.0.0.2]:40000", true))
	if err := decode(b, &s); err != nil {
		t.Fatal(err)
	}
	want := Socket{
		Local:  netip.MustParseAddrPort("10.0.0.1:389"),
		Remote: netip.MustParseAddrPort("10.0.0.2:40000"),
		State:  Established, Cookie: 0x100000002, UID: 1000, Inode: 4711, Interface: 3,
		LastSent: time.Millisecond, LastRecv: 2 * time.Millisecond, LastAck: 3 * time.Millisecond, HasInfo: true,
		family: unix.AF_INET6, id: [idSize]byte(b[msgID:]),
	}
	if s != want {
		t.Fatalf("got %+v, want %+v", s, want)
	}
}

func TestDecodeTellsMiniSockets(t *testing.T) {
	for _, c := range []struct {
		sent State
		full bool
		want State
	}{
		{SynRecv, true, SynRecv},
		{SynRecv, false, NewSynRecv},
		{FinWait2, true, FinWait2},
		{FinWait2, false, TimeWait},
		{TimeWait, false, TimeWait},
		{Established, false, Established},
	} {
		var s Socket
		if err := decode(answer(unix.AF_INET, c.sent, "10.0.0.1:1", "10.0.0.2:2", c.full), &s); err != nil || s.State != c.want {
			t.Errorf("%v, full %v: got %v, %v; want %v", c.sent, c.full, s.State, err, c.want)
		}
	}
}

func TestDecodeRefusesNonsense(t *testing.T) {
	good := answer(unix.AF_INET, Established, "10.0.0.1:1", "10.0.0.2:2", true)
	for name, b := range map[string][]byte{
		"empty":            {},
		"short":            good[:msgSize-1],
		"cut attribute":    good[:len(good)-5],
		"other family":     answer(unix.AF_UNIX, Established, "10.0.0.1:1", "10.0.0.2:2", true),
		"half a attribute": good[:msgSize+2],
	} {
		if err := decode(b, new(Socket)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	var s Socket
	b := withInfo(answer(unix.AF_INET6, Established, "[fd00::1]:389", "[fd00::2]:40000", true))
	if n := testing.AllocsPerRun(100, func() { _ = decode(b, &s) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(answer(unix.AF_INET, Established, "10.0.0.1:1", "10.0.0.2:2", true))
	f.Add(withInfo(answer(unix.AF_INET6, SynRecv, "[fd00::1]:389", "[fd00::2]:40000", false)))
	f.Add(answer(unix.AF_INET6, FinWait2, "[::ffff:10.0.0.1]:389", "[::ffff:10.0.0.2]:40000", false))
	f.Fuzz(func(t *testing.T, b []byte) {
		var first, second Socket
		if decode(b, &first) != nil {
			return
		}
		if err := decode(b, &second); err != nil || first != second {
			t.Fatalf("decoded again: %+v, %v; was %+v", second, err, first)
		}
		if !first.Local.IsValid() || !first.Remote.IsValid() || first.Local.Addr().Is4In6() {
			t.Fatalf("bad addresses: %+v", first)
		}
		if first.Cookie != getCookie(&first.id) {
			t.Fatalf("bad cookie: %+v", first)
		}
	})
}

func TestStateNames(t *testing.T) {
	for s, want := range map[State]string{Established: "ESTAB", NewSynRecv: "NEW-SYN-RECV", 0: "STATE-0", 99: "STATE-99"} {
		if s.String() != want {
			t.Errorf("state %d is %q, want %q", uint8(s), s, want)
		}
	}
}
