package challenge

import (
	"encoding/binary"
	"net/netip"
)

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	maxPacket  = ipv6Header + tcpHeader

	protocolTCP = 6
	hopLimit    = 64
	flagACK     = 0x10
	window      = 0xffff // can't shrink the window of the other end
)

// appendPacket appends an IP packet with one bare ACK to b. Both ends are valid, of one family and not v4-mapped.
func appendPacket(b []byte, from, to netip.AddrPort, n numbers) []byte {
	if to.Addr().Is4() {
		b = appendIPv4(b, from.Addr().As4(), to.Addr().As4())
	} else {
		b = appendIPv6(b, from.Addr().As16(), to.Addr().As16())
	}
	start := len(b)
	b = appendTCP(b, from.Port(), to.Port(), n)
	tcp := b[start:]
	binary.BigEndian.PutUint16(tcp[16:], checksum(tcp, pseudo(from.Addr(), to.Addr(), len(tcp))))
	return b
}

func appendIPv4(b []byte, from, to [4]byte) []byte {
	start := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, ipv4Header+tcpHeader)
	b = append(b, 0, 0, 0x40, 0) // the kernel fills in the id; don't fragment
	b = append(b, hopLimit, protocolTCP, 0, 0)
	b = append(b, from[:]...)
	b = append(b, to[:]...)
	binary.BigEndian.PutUint16(b[start+10:], checksum(b[start:], 0))
	return b
}

func appendIPv6(b []byte, from, to [16]byte) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, tcpHeader)
	b = append(b, protocolTCP, hopLimit)
	b = append(b, from[:]...)
	return append(b, to[:]...)
}

// appendTCP leaves the checksum 0.
func appendTCP(b []byte, from, to uint16, n numbers) []byte {
	b = binary.BigEndian.AppendUint16(b, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, n.seq)
	b = binary.BigEndian.AppendUint32(b, n.ack)
	b = append(b, tcpHeader/4<<4, flagACK)
	b = binary.BigEndian.AppendUint16(b, window)
	return append(b, 0, 0, 0, 0) // checksum, urgent pointer
}
