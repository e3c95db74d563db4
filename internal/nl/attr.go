package nl

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// typeMask takes NLA_F_NESTED and NLA_F_NET_BYTEORDER off an attribute's type.
const typeMask = 0x3fff

// Attrs steps through the attributes of a message, or of one nested attribute:
//
//	for a := nl.ParseAttrs(b); a.Next(); {
//		switch a.Type() { … }
//	}
//
// Values lie in the message and are valid as long as it is. Err tells afterwards whether all was well.
type Attrs struct {
	rest  []byte
	typ   uint16
	value []byte
	err   error
}

// ParseAttrs returns the attributes in b, before the first one. An empty b has none.
func ParseAttrs(b []byte) Attrs { return Attrs{rest: b} }

// Next steps to the next attribute. It is false at the end and after an error.
func (a *Attrs) Next() bool {
	if len(a.rest) == 0 || a.err != nil {
		return false
	}
	if len(a.rest) < unix.SizeofNlAttr {
		a.err = ErrMalformed
		return false
	}
	length := int(binary.NativeEndian.Uint16(a.rest))
	if length < unix.SizeofNlAttr || length > len(a.rest) {
		a.err = ErrMalformed
		return false
	}
	a.typ = binary.NativeEndian.Uint16(a.rest[2:]) & typeMask
	a.value = a.rest[unix.SizeofNlAttr:length]
	a.rest = a.rest[min(align(length), len(a.rest)):]
	return true
}

// Type is the current attribute's type, without flags.
func (a *Attrs) Type() uint16 { return a.typ }

// Value is the current attribute's value, without padding.
func (a *Attrs) Value() []byte { return a.value }

// Err is ErrMalformed when an attribute is shorter than its header or reaches beyond the end, or when Take
// found a value too short.
func (a *Attrs) Err() error { return a.err }

// Take returns the first n bytes of the current value. When the value is shorter, the result is all zero and Err
// is ErrMalformed from then on. n is at most 16, the longest value that anybody takes.
func (a *Attrs) Take(n int) []byte {
	if len(a.value) < n {
		a.err = ErrMalformed
		return zeros[:n]
	}
	return a.value[:n]
}

// Uint8 takes a byte, like Take.
func (a *Attrs) Uint8() uint8 { return a.Take(1)[0] }

// Uint16 takes a big-endian number, like Take.
func (a *Attrs) Uint16() uint16 { return binary.BigEndian.Uint16(a.Take(2)) }

// Uint32 takes a big-endian number, like Take.
func (a *Attrs) Uint32() uint32 { return binary.BigEndian.Uint32(a.Take(4)) }

// Uint64 takes a big-endian number, like Take.
func (a *Attrs) Uint64() uint64 { return binary.BigEndian.Uint64(a.Take(8)) }

var zeros = make([]byte, 16)

// AppendAttr appends an attribute and its padding. A value of more than 65531 bytes is ErrMalformed.
func AppendAttr(b []byte, typ uint16, value []byte) ([]byte, error) {
	length := unix.SizeofNlAttr + len(value)
	if length > math.MaxUint16 {
		return b, fmt.Errorf("append attribute of %d bytes: %w", len(value), ErrMalformed)
	}
	b = binary.NativeEndian.AppendUint16(b, uint16(length))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, zeros[:align(length)-length]...), nil
}

// AppendUint32 appends an attribute that holds a big-endian number, as the netfilter subsystems want it.
func AppendUint32(b []byte, typ uint16, value uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofNlAttr+4)
	b = binary.NativeEndian.AppendUint16(b, typ)
	return binary.BigEndian.AppendUint32(b, value)
}

// AppendNested appends an attribute whose value is the attributes that fill appends, at most 65531 bytes of them.
func AppendNested(b []byte, typ uint16, fill func([]byte) []byte) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint16(b, typ|unix.NLA_F_NESTED)
	b = fill(b)
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}
