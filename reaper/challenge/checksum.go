package challenge

import (
	"encoding/binary"
	"net/netip"
)

// checksum is the Internet checksum (RFC 1071) of b and of what sum holds already.
func checksum(b []byte, sum uint32) uint16 {
	sum = add(b, sum)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// add adds the 16-bit words of b, which has an even length below 64 KiB, to sum.
func add(b []byte, sum uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

// pseudo is the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func pseudo(from, to netip.Addr, length int) uint32 {
	return addAddr(from, addAddr(to, protocolTCP+uint32(length)))
}

func addAddr(a netip.Addr, sum uint32) uint32 {
	if a.Is4() {
		b := a.As4()
		return add(b[:], sum)
	}
	b := a.As16()
	return add(b[:], sum)
}
