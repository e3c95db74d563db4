package challenge

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendBuffer holds about 40,000 packets. Packets to a neighbour that does not answer (256 for each) fill it for up to 3 s.
const sendBuffer = 16 << 20

// socket is a raw socket of one family. It is not safe for concurrent use.
type socket struct {
	fd      int
	v4      unix.SockaddrInet4
	v6      unix.SockaddrInet6
	control []byte // one IP_PKTINFO or IPV6_PKTINFO message
}

// openSocket makes a socket to which we give whole IP packets: IPPROTO_RAW implies IP_HDRINCL and IPV6_HDRINCL.
func openSocket(family int, mark uint32) (*socket, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &socket{fd: fd, control: newControl(family)}
	if err := s.setup(family, mark); err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setup(family int, mark uint32) error {
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	if family == unix.AF_INET6 {
		// IPV6_PKTINFO with a foreign address needs it (ip6_datagram_send_ctl); in IPv4 IP_HDRINCL is enough.
		if err := unix.SetsockoptInt(s.fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1); err != nil {
			return fmt.Errorf("allow foreign source addresses: %w", err)
		}
	}
	// Not allowed in a user namespace; the default holds 256 packets.
	_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer)
	return nil
}

// newControl prepares the control message that tells routing the source address: without it, policy
// routing (ip rule from ...) would not see the one in the packet.
func newControl(family int) []byte {
	level, kind, size := int32(unix.SOL_IP), int32(unix.IP_PKTINFO), unix.SizeofInet4Pktinfo
	if family == unix.AF_INET6 {
		level, kind, size = unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo
	}
	b := make([]byte, unix.CmsgSpace(size))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return b
}

func (s *socket) send(packet []byte, from, to netip.Addr) error {
	info := unsafe.Pointer(&s.control[unix.CmsgLen(0)])
	var dest unix.Sockaddr
	if to.Is4() {
		(*unix.Inet4Pktinfo)(info).Spec_dst = from.As4()
		s.v4.Addr = to.As4()
		dest = &s.v4
	} else {
		(*unix.Inet6Pktinfo)(info).Addr = from.As16()
		zone, err := s.zoneID(to.Zone())
		if err != nil {
			return err
		}
		s.v6.Addr, s.v6.ZoneId = to.As16(), zone
		dest = &s.v6
	}
	_, err := unix.SendmsgN(s.fd, packet, s.control, dest, 0)
	return os.NewSyscallError("sendmsg", err)
}

// zoneID is the interface index of a zone, a name or a number, in the socket's namespace. No zone is 0.
func (s *socket) zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	req, err := unix.NewIfreq(zone)
	if err == nil {
		err = unix.IoctlIfreq(s.fd, unix.SIOCGIFINDEX, req)
	}
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", zone, err)
	}
	return req.Uint32(), nil
}

// close may be called on nil.
func (s *socket) close() error {
	if s == nil {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(s.fd))
}
