package challenge

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// TestPacketBytes compares with packets written from the RFCs; another program made their checksums.
func TestPacketBytes(t *testing.T) {
	n := numbers{seq: 0x01020304, ack: 0x05060708}
	tests := []struct {
		name, from, to, want string
	}{
		{
			"IPv4", "10.0.0.1:8080", "10.0.0.2:5000",
			"4500 0028 0000 4000 4006 26ce 0a000001 0a000002" +
				"1f90 1388 01020304 05060708 5010 ffff 58a6 0000",
		},
		{
			"IPv6", "[fd00::1]:8080", "[fd00::2]:5000",
			"60000000 0014 0640 fd000000000000000000000000000001 fd000000000000000000000000000002" +
				"1f90 1388 01020304 05060708 5010 ffff 72a4 0000",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(tt.want), []byte(" "), nil)))
			if err != nil {
				t.Fatal(err)
			}
			got := appendPacket(nil, netip.MustParseAddrPort(tt.from), netip.MustParseAddrPort(tt.to), n)
			if !bytes.Equal(got, want) {
				t.Errorf("packet\n got %x\nwant %x", got, want)
			}
		})
	}
}

// FuzzPacket parses what was built with another library and verifies the checksums in another way.
func FuzzPacket(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}, uint16(8080), uint16(5000), uint32(1), uint32(2))
	f.Add([]byte{255, 255, 255, 255}, []byte{0, 0, 0, 0}, uint16(0), uint16(65535), uint32(1<<32-1), uint32(0))
	f.Add(netip.IPv6Loopback().AsSlice(), bytes.Repeat([]byte{0xff}, 16), uint16(1), uint16(2), uint32(3), uint32(4))
	f.Fuzz(func(t *testing.T, src, dst []byte, sport, dport uint16, seq, ack uint32) {
		from, ok1 := netip.AddrFromSlice(src)
		to, ok2 := netip.AddrFromSlice(dst)
		if !ok1 || !ok2 || from.Is4() != to.Is4() {
			t.Skip()
		}
		n := numbers{seq: seq, ack: ack}
		prefix := []byte("kept")
		b := appendPacket(prefix, netip.AddrPortFrom(from, sport), netip.AddrPortFrom(to, dport), n)
		if !bytes.HasPrefix(b, prefix) {
			t.Fatalf("prefix changed: %x", b)
		}
		packet := b[len(prefix):]
		tcp := parseIPv4
		if from.Is6() {
			tcp = parseIPv6
		}
		checkTCP(t, tcp(t, packet, from, to), from, to, sport, dport, n)
	})
}

func parseIPv4(t *testing.T, b []byte, from, to netip.Addr) []byte {
	t.Helper()
	h, err := ipv4.ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	if h.Version != 4 || h.Len != 20 || h.TotalLen != len(b) || h.Protocol != 6 || h.TTL == 0 || h.Flags != ipv4.DontFragment {
		t.Errorf("IPv4 header: %v", h)
	}
	if !h.Src.Equal(from.AsSlice()) || !h.Dst.Equal(to.AsSlice()) {
		t.Errorf("IPv4 addresses: %v", h)
	}
	if sum := onesComplement(b[:20]); sum != 0xffff {
		t.Errorf("IPv4 header sums up to %#x", sum)
	}
	return b[20:]
}

func parseIPv6(t *testing.T, b []byte, from, to netip.Addr) []byte {
	t.Helper()
	h, err := ipv6.ParseHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	if h.Version != 6 || h.PayloadLen != len(b)-40 || h.NextHeader != 6 || h.HopLimit == 0 {
		t.Errorf("IPv6 header: %v", h)
	}
	if !h.Src.Equal(from.AsSlice()) || !h.Dst.Equal(to.AsSlice()) {
		t.Errorf("IPv6 addresses: %v", h)
	}
	return b[40:]
}

func checkTCP(t *testing.T, b []byte, from, to netip.Addr, sport, dport uint16, n numbers) {
	t.Helper()
	be := binary.BigEndian
	if be.Uint16(b) != sport || be.Uint16(b[2:]) != dport || be.Uint32(b[4:]) != n.seq || be.Uint32(b[8:]) != n.ack {
		t.Errorf("TCP header: %x", b)
	}
	if len(b) != 20 || b[12] != 0x50 || b[13] != 0x10 {
		t.Errorf("not a bare ACK without data: %x", b)
	}
	whole := append(from.AsSlice(), to.AsSlice()...)
	whole = append(whole, 0, 6, 0, byte(len(b)))
	if sum := onesComplement(append(whole, b...)); sum != 0xffff {
		t.Errorf("TCP segment sums up to %#x", sum)
	}
}

// onesComplement adds with an end-around carry at every step. A correct checksum makes it 0xffff.
func onesComplement(b []byte) uint16 {
	var sum uint16
	for i := 0; i < len(b); i += 2 {
		word := uint16(b[i])<<8 | uint16(b[i+1])
		sum += word
		if sum < word {
			sum++
		}
	}
	return sum
}

func TestPacketDoesNotAllocate(t *testing.T) {
	from, to := netip.MustParseAddrPort("[fd00::1]:8080"), netip.MustParseAddrPort("[fd00::2]:5000")
	b := make([]byte, 0, maxPacket)
	n := numbers{}
	if got := testing.AllocsPerRun(100, func() { b = appendPacket(b[:0], from, to, n) }); got != 0 {
		t.Errorf("%v allocations, want none", got)
	}
}
