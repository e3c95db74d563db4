package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// From include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21

	attrReqBytecode = 1 // INET_DIAG_REQ_BYTECODE
	attrInfo        = 2 // INET_DIAG_INFO
	attrShutdown    = 8 // INET_DIAG_SHUTDOWN

	extInfo = 1 << (attrInfo - 1) // idiag_ext that asks for tcp_info
)

// struct inet_diag_sockid: ports and addresses are big-endian, the rest is in host byte order.
const (
	idSrcPort   = 0
	idDstPort   = 2
	idSrc       = 4
	idDst       = 20
	idInterface = 36
	idCookie    = 40
	idSize      = 48
)

// struct inet_diag_msg.
const (
	msgFamily = 0
	msgState  = 1
	msgID     = 4
	msgUID    = 64
	msgInode  = 68
	msgSize   = 72
)

// struct tcp_info of include/uapi/linux/tcp.h, whose beginning is the same in every kernel: ages in milliseconds.
const (
	infoLastDataSent = 44
	infoLastDataRecv = 52
	infoLastAckRecv  = 56
	infoSize         = 60
)

// noCookie in a request matches every socket; the kernel gives it to none.
const noCookie = ^uint64(0)

// appendRequest appends a struct inet_diag_req_v2.
func appendRequest(b []byte, typ uint16, family, ext uint8, states uint32, id *[idSize]byte) []byte {
	b = nl.AppendHeader(b, typ, 0)
	b = append(b, family, unix.IPPROTO_TCP, ext, 0)
	b = binary.NativeEndian.AppendUint32(b, states)
	return append(b, id[:]...)
}

// newID makes the identity of a socket whose cookie isn't known. Both addresses are of one family.
func newID(local, remote netip.AddrPort, ifindex uint32) (id [idSize]byte) {
	binary.BigEndian.PutUint16(id[idSrcPort:], local.Port())
	binary.BigEndian.PutUint16(id[idDstPort:], remote.Port())
	copy(id[idSrc:], local.Addr().AsSlice())
	copy(id[idDst:], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id[idInterface:], ifindex)
	putCookie(&id, noCookie)
	return id
}

// The cookie is sent as two words, the lower half first (sock_diag_save_cookie in net/core/sock_diag.c).
func putCookie(id *[idSize]byte, cookie uint64) {
	binary.NativeEndian.PutUint32(id[idCookie:], uint32(cookie))
	binary.NativeEndian.PutUint32(id[idCookie+4:], uint32(cookie>>32))
}

func getCookie(id *[idSize]byte) uint64 {
	low, high := binary.NativeEndian.Uint32(id[idCookie:]), binary.NativeEndian.Uint32(id[idCookie+4:])
	return uint64(high)<<32 | uint64(low)
}

// decode reads a struct inet_diag_msg and its attributes into s.
func decode(payload []byte, s *Socket) error {
	if len(payload) < msgSize {
		return ErrMalformed
	}
	*s = Socket{
		family: payload[msgFamily],
		id:     [idSize]byte(payload[msgID:]),
		State:  State(payload[msgState]),
		UID:    binary.NativeEndian.Uint32(payload[msgUID:]),
		Inode:  binary.NativeEndian.Uint32(payload[msgInode:]),
	}
	s.Cookie = getCookie(&s.id)
	s.Interface = binary.NativeEndian.Uint32(s.id[idInterface:])
	if err := s.decodeAddrs(); err != nil {
		return err
	}
	return s.decodeAttrs(payload[msgSize:])
}

func (s *Socket) decodeAddrs() error {
	var local, remote netip.Addr
	switch s.family {
	case unix.AF_INET:
		local, remote = netip.AddrFrom4([4]byte(s.id[idSrc:])), netip.AddrFrom4([4]byte(s.id[idDst:]))
	case unix.AF_INET6:
		local, remote = netip.AddrFrom16([16]byte(s.id[idSrc:])), netip.AddrFrom16([16]byte(s.id[idDst:]))
	default:
		return ErrMalformed
	}
	s.Local = netip.AddrPortFrom(local.Unmap(), binary.BigEndian.Uint16(s.id[idSrcPort:]))
	s.Remote = netip.AddrPortFrom(remote.Unmap(), binary.BigEndian.Uint16(s.id[idDstPort:]))
	return nil
}

func (s *Socket) decodeAttrs(b []byte) error {
	full := false
	a := nl.ParseAttrs(b)
	for a.Next() {
		switch a.Type() {
		case attrShutdown:
			full = true
		case attrInfo:
			s.decodeInfo(a.Value())
		}
	}
	if !full {
		s.State = miniState(s.State)
	}
	return a.Err()
}

// miniState is the true state of what is not a full socket. The kernel reports a handshake in a listener's queue as
// SYN_RECV, and a time-wait socket by its substate, which may be FIN_WAIT2 (inet_req_diag_fill, inet_twsk_diag_fill).
// Only full sockets have INET_DIAG_SHUTDOWN.
func miniState(s State) State {
	switch s {
	case SynRecv:
		return NewSynRecv
	case FinWait2:
		return TimeWait
	}
	return s
}

func (s *Socket) decodeInfo(b []byte) {
	if len(b) < infoSize {
		return
	}
	age := func(offset int) time.Duration {
		return time.Duration(binary.NativeEndian.Uint32(b[offset:])) * time.Millisecond
	}
	s.LastSent, s.LastRecv, s.LastAck = age(infoLastDataSent), age(infoLastDataRecv), age(infoLastAckRecv)
	s.HasInfo = true
}
