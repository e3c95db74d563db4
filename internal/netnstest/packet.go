package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A Packet is a TCP packet that a capture has seen on a device. One that is forwarded is seen twice.
type Packet struct {
	At       time.Time
	Dev      string
	Outgoing bool // this host sends it
	Src, Dst netip.AddrPort
	TTL      uint8 // or hop limit
	Flags    uint8
	Seq, Ack uint32
	Length   int // of the data
}

// Flags of a TCP packet.
const (
	FlagSYN = 0x02
	FlagRST = 0x04
	FlagPSH = 0x08
	FlagACK = 0x10
)

// String shows the packet in one line.
func (p Packet) String() string {
	way := "in "
	if p.Outgoing {
		way = "out"
	}
	return fmt.Sprintf("%s %s %s %s > %s flags %#02x seq %d ack %d length %d ttl %d",
		p.At.Format("05.000000"), p.Dev, way, p.Src, p.Dst, p.Flags, p.Seq, p.Ack, p.Length, p.TTL)
}

// A frame is a place in the ring: struct tpacket2_hdr, struct sockaddr_ll and, from the offset tp_net on, the packet.
type frame []byte

const addressOffset = (unix.SizeofTpacket2Hdr + 15) &^ 15

var native = binary.NativeEndian

func (f frame) ready() bool   { return native.Uint32(f)&unix.TP_STATUS_USER != 0 }
func (f frame) captured() int { return int(native.Uint32(f[8:])) }
func (f frame) network() int  { return int(native.Uint16(f[14:])) }
func (f frame) at() time.Time {
	return time.Unix(int64(native.Uint32(f[16:])), int64(native.Uint32(f[20:])))
}
func (f frame) protocol() int   { return int(binary.BigEndian.Uint16(f[addressOffset+2:])) }
func (f frame) device() int32   { return int32(native.Uint32(f[addressOffset+4:])) }
func (f frame) packetType() int { return int(f[addressOffset+10]) }

var errShort = errors.New("a packet is cut off within its headers")

// packet reads a TCP packet; others are not.
func (f frame) packet() (p Packet, isTCP bool, err error) {
	p = Packet{At: f.at(), Outgoing: f.packetType() == unix.PACKET_OUTGOING}
	b := f[f.network():min(f.network()+f.captured(), len(f))]
	switch f.protocol() {
	case unix.ETH_P_IP:
		isTCP, err = p.readIPv4(b)
	case unix.ETH_P_IPV6:
		isTCP, err = p.readIPv6(b)
	}
	return p, isTCP, err
}

func (p *Packet) readIPv4(b []byte) (isTCP bool, err error) {
	if len(b) < 20 || len(b) < 4*int(b[0]&15) {
		return false, errShort
	}
	if b[9] != unix.IPPROTO_TCP {
		return false, nil
	}
	p.TTL = b[8]
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	header := 4 * int(b[0]&15)
	return true, p.readTCP(src, dst, int(binary.BigEndian.Uint16(b[2:]))-header, b[header:])
}

// readIPv6 knows no extension headers: TCP has none.
func (p *Packet) readIPv6(b []byte) (isTCP bool, err error) {
	if len(b) < 40 {
		return false, errShort
	}
	if b[6] != unix.IPPROTO_TCP {
		return false, nil
	}
	p.TTL = b[7]
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	return true, p.readTCP(src, dst, int(binary.BigEndian.Uint16(b[4:])), b[40:])
}

func (p *Packet) readTCP(src, dst netip.Addr, length int, b []byte) error {
	if len(b) < 20 {
		return errShort
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	p.Seq, p.Ack, p.Flags = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]), b[13]
	p.Length = length - 4*int(b[12]>>4)
	return nil
}
