package conntrack

import (
	"encoding/binary"
	"math/bits"
	"testing"
)

// Where bit n of a bitmap of unsigned longs lies, worked out by hand.
func TestByteInBitmap(t *testing.T) {
	for _, c := range []struct{ bit, little, big64, big32 int }{
		{0, 0, 7, 3},
		{7, 0, 7, 3},
		{8, 1, 6, 2},
		{31, 3, 4, 0},
		{32, 4, 3, 7},
		{63, 7, 0, 4},
		{64, 8, 15, 11},
		{127, 15, 8, 12},
	} {
		little64, little32 := byteInBitmap(c.bit, 8, false), byteInBitmap(c.bit, 4, false)
		big64, big32 := byteInBitmap(c.bit, 8, true), byteInBitmap(c.bit, 4, true)
		if little64 != c.little || little32 != c.little || big64 != c.big64 || big32 != c.big32 {
			t.Errorf("bit %d: got %d, %d, %d, %d", c.bit, little64, little32, big64, big32)
		}
	}
}

// On this machine: words in host byte order.
func TestLabelHas(t *testing.T) {
	for bit := range 128 {
		var l Label
		word, shift := bit/bits.UintSize, bit%bits.UintSize
		if bits.UintSize == 64 {
			binary.NativeEndian.PutUint64(l[8*word:], 1<<shift)
		} else {
			binary.NativeEndian.PutUint32(l[4*word:], 1<<shift)
		}
		for other := -1; other <= 128; other++ {
			if l.Has(other) != (other == bit) {
				t.Errorf("with bit %d set, bit %d is %v", bit, other, l.Has(other))
			}
		}
	}
}

func TestStateNames(t *testing.T) {
	for state, want := range map[uint8]string{
		StateNone: "NONE", StateEstablished: "ESTABLISHED", StateSynSent2: "SYN_SENT2",
		StateUnack: "UNACK", 10: "STATE_10", 200: "STATE_200",
	} {
		if got := StateName(state); got != want {
			t.Errorf("state %d is %q, want %q", state, got, want)
		}
	}
	if StateClose != 8 || StateRetrans != 12 {
		t.Error("the states are not numbered as in the kernel")
	}
}
