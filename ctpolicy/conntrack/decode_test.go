package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// attr builds one attribute, nested when it is given several values.
func attr(typ uint16, values ...[]byte) []byte {
	b, err := nl.AppendAttr(nil, typ, slices.Concat(values...))
	if err != nil {
		panic(err)
	}
	return b
}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
func be64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func tuple(typ uint16, proto byte, src, dst string) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	srcType, dstType := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if s.Addr().Is6() {
		srcType, dstType = ctaIPv6Src, ctaIPv6Dst
	}
	return attr(typ,
		attr(ctaTupleIP, attr(srcType, s.Addr().AsSlice()), attr(dstType, d.Addr().AsSlice())),
		attr(ctaTupleProto,
			attr(ctaProtoNum, []byte{proto}),
			attr(ctaProtoSrcPort, be16(s.Port())),
			attr(ctaProtoDstPort, be16(d.Port()))),
	)
}

var header = []byte{unix.AF_INET, 0, 0, 0}

// full is a message with all that the kernel sends for a NATed IPv4 flow, in its order, and something unknown.
func full() []byte {
	return slices.Concat(
		header,
		tuple(ctaTupleOrig, unix.IPPROTO_TCP, "10.0.0.1:40000", "10.0.0.2:389"),
		tuple(ctaTupleReply, unix.IPPROTO_TCP, "10.1.0.3:1389", "10.1.0.1:50000"),
		attr(ctaZone, be16(7)),
		attr(ctaStatus, be32(0x58e)),
		attr(ctaTimeout, be32(431999)),
		attr(ctaTimestamp, attr(ctaTimestampStart, be64(1_700_000_000_123_456_789))),
		attr(ctaProtoInfo, attr(ctaProtoInfoTCP,
			attr(ctaTCPState, []byte{3}), attr(ctaTCPScaleOrig, []byte{7}), attr(ctaTCPScaleReply, []byte{9}),
			attr(ctaTCPFlagsOrig, []byte{0x23, 0}), attr(ctaTCPFlagsReply, []byte{0x03, 0}))),
		attr(999, []byte("something new")),
		attr(ctaLabels, slices.Repeat([]byte{0xa5}, 16)),
		attr(ctaMark, be32(0xc0ffee)),
		attr(ctaID, be32(0xdeadbeef)),
		attr(11, be32(1)), // CTA_USE
	)
}

func plain6() []byte {
	return slices.Concat(
		[]byte{unix.AF_INET6, 0, 0, 0},
		tuple(ctaTupleOrig, unix.IPPROTO_TCP, "[fd00::1]:40000", "[fd00::2]:389"),
		tuple(ctaTupleReply, unix.IPPROTO_TCP, "[fd00::2]:389", "[fd00::1]:40000"),
	)
}

func udp() []byte {
	return slices.Concat(header, tuple(ctaTupleOrig, unix.IPPROTO_UDP, "10.0.0.1:53", "10.0.0.2:53"), []byte("not read"))
}

func addrs(src, dst string) Tuple {
	return Tuple{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
}

func TestDecode(t *testing.T) {
	want := Entry{
		Orig:  addrs("10.0.0.1:40000", "10.0.0.2:389"),
		Reply: addrs("10.1.0.3:1389", "10.1.0.1:50000"),
		ID:    0xdeadbeef, Zone: 7, ReplyZone: 7, Status: 0x58e, Timeout: 431999, State: StateEstablished,
		OrigFlags: 0x23, ReplyFlags: 0x03, OrigScale: 7, ReplyScale: 9, Start: 1_700_000_000_123_456_789,
		Label: Label(slices.Repeat([]byte{0xa5}, 16)), Mark: 0xc0ffee,
	}
	var e Entry
	if ok, err := decode(full(), &e); !ok || err != nil || e != want {
		t.Fatalf("got %+v, %v, %v; want %+v", e, ok, err, want)
	}
	// Nothing of the entry before may be left.
	want = Entry{Orig: addrs("[fd00::1]:40000", "[fd00::2]:389"), Reply: addrs("[fd00::2]:389", "[fd00::1]:40000")}
	if ok, err := decode(plain6(), &e); !ok || err != nil || e != want {
		t.Fatalf("got %+v, %v, %v; want %+v", e, ok, err, want)
	}
}

func TestDecodeSkipsOtherProtocols(t *testing.T) {
	if ok, err := decode(udp(), new(Entry)); ok || err != nil {
		t.Fatalf("got %v, %v", ok, err)
	}
}

func TestDecodeZoneOfOneDirection(t *testing.T) {
	inOrig := attr(ctaTupleOrig, tuple(ctaTupleOrig, unix.IPPROTO_TCP, "10.0.0.1:1", "10.0.0.2:2")[4:], attr(ctaTupleZone, be16(9)))
	inReply := attr(ctaTupleReply, tuple(ctaTupleReply, unix.IPPROTO_TCP, "10.0.0.2:2", "10.0.0.1:1")[4:], attr(ctaTupleZone, be16(8)))
	orig := tuple(ctaTupleOrig, unix.IPPROTO_TCP, "10.0.0.1:1", "10.0.0.2:2")
	reply := tuple(ctaTupleReply, unix.IPPROTO_TCP, "10.0.0.2:2", "10.0.0.1:1")
	for _, c := range []struct {
		orig, reply         []byte
		wantOrig, wantReply uint16
	}{{inOrig, reply, 9, 0}, {orig, inReply, 0, 8}, {orig, reply, 0, 0}} {
		var e Entry
		ok, err := decode(slices.Concat(header, c.orig, c.reply), &e)
		if !ok || err != nil || e.Zone != c.wantOrig || e.ReplyZone != c.wantReply {
			t.Fatalf("got zones %d and %d, %v, %v; want %d and %d", e.Zone, e.ReplyZone, ok, err, c.wantOrig, c.wantReply)
		}
	}
}

func TestDecodeRefusesNonsense(t *testing.T) {
	orig := tuple(ctaTupleOrig, unix.IPPROTO_TCP, "10.0.0.1:1", "10.0.0.2:2")
	reply := tuple(ctaTupleReply, unix.IPPROTO_TCP, "10.0.0.2:2", "10.0.0.1:1")
	good := slices.Concat(header, orig, reply)
	if ok, err := decode(good, new(Entry)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	half := attr(ctaTupleReply, attr(ctaTupleIP, attr(ctaIPv4Src, []byte{10, 0, 0, 1}), attr(ctaIPv6Dst, make([]byte, 16))))
	for name, b := range map[string][]byte{
		"empty":            {},
		"no tuple":         header,
		"one tuple":        slices.Concat(header, orig),
		"mixed families":   slices.Concat(header, orig, half),
		"cut tuple":        good[:len(good)-10],
		"short status":     slices.Concat(good, attr(ctaStatus, []byte{1})),
		"short label":      slices.Concat(good, attr(ctaLabels, make([]byte, 15))),
		"short address":    slices.Concat(good, attr(ctaTupleReply, attr(ctaTupleIP, attr(ctaIPv4Src, []byte{1, 2, 3})))),
		"short port":       slices.Concat(good, attr(ctaTupleReply, attr(ctaTupleProto, attr(ctaProtoSrcPort, []byte{1})))),
		"short flags":      slices.Concat(good, attr(ctaProtoInfo, attr(ctaProtoInfoTCP, attr(ctaTCPFlagsOrig, []byte{1})))),
		"nested too long":  slices.Concat(good, attr(ctaProtoInfo, []byte{9, 0, 9, 0})),
		"short start":      slices.Concat(good, attr(ctaTimestamp, attr(ctaTimestampStart, be32(1)))),
		"rest of 3 bytes":  append(slices.Clone(good), 1, 2, 3),
		"short scale":      slices.Concat(good, attr(ctaProtoInfo, attr(ctaProtoInfoTCP, attr(ctaTCPScaleReply, nil)))),
		"short reply zone": slices.Concat(header, orig, attr(ctaTupleReply, attr(ctaTupleZone, []byte{1}))),
		"short tuple zone": slices.Concat(header, attr(ctaTupleOrig, attr(ctaTupleZone, []byte{1})), reply),
	} {
		if ok, err := decode(b, new(Entry)); ok || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, %v", name, ok, err)
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	var e Entry
	for _, b := range [][]byte{full(), plain6(), udp()} {
		if n := testing.AllocsPerRun(100, func() { _, _ = decode(b, &e) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(full())
	f.Add(plain6())
	f.Add(udp())
	f.Add(full()[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		var first Entry
		ok, err := decode(b, &first)
		if !ok || err != nil {
			return
		}
		second := Entry{Mark: 1, Start: 1, Zone: 1, ReplyZone: 1, OrigScale: 1}
		if ok, err := decode(b, &second); !ok || err != nil || first != second {
			t.Fatalf("decoded again: %+v, %v, %v; was %+v", second, ok, err, first)
		}
		if !first.Orig.complete() || !first.Reply.complete() {
			t.Fatalf("incomplete: %+v", first)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	var e Entry
	message := full()
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := decode(message, &e); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
