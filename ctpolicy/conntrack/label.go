package conntrack

import (
	"encoding/binary"
	"math/bits"
)

// Label is a flow's set of 128 label bits, byte for byte as the kernel sends it: a bitmap of unsigned longs
// in the host's byte order (include/net/netfilter/nf_conntrack_labels.h). All zero means no label.
type Label [16]byte

// Has tells whether a bit is set, from 0 to 127.
func (l Label) Has(bit int) bool {
	if bit < 0 || bit >= 8*len(l) {
		return false
	}
	return l[labelByte(bit)]&(1<<(bit%8)) != 0
}

// Set sets a bit, from 0 to 127.
func (l *Label) Set(bit int) { l[labelByte(bit)] |= 1 << (bit % 8) }

// Clear clears a bit, from 0 to 127.
func (l *Label) Clear(bit int) { l[labelByte(bit)] &^= 1 << (bit % 8) }

// And is the bits that both labels have.
func (l Label) And(other Label) Label {
	for i := range l {
		l[i] &= other[i]
	}
	return l
}

// Bits is a label with these bits set, from 0 to 127.
func Bits(bits ...int) (l Label) {
	for _, bit := range bits {
		l.Set(bit)
	}
	return l
}

// labelByte is the index of the byte that holds bit on this machine. It takes the kernel's unsigned long to be as wide
// as our uint.
func labelByte(bit int) int { return byteInBitmap(bit, bits.UintSize/8, bigEndian()) }

// byteInBitmap is labelByte for a given number of bytes in a word, and their order.
func byteInBitmap(bit, wordSize int, big bool) int {
	i := bit / 8
	if !big {
		return i
	}
	word := i - i%wordSize
	return word + wordSize - 1 - i%wordSize
}

func bigEndian() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }

// AndNot is the bits that the other label does not have.
func (l Label) AndNot(other Label) Label {
	for i := range l {
		l[i] &^= other[i]
	}
	return l
}

// Or is the bits that either label has.
func (l Label) Or(other Label) Label {
	for i := range l {
		l[i] |= other[i]
	}
	return l
}
