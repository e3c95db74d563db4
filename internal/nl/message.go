package nl

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// message is one netlink message. Its payload lies in the Conn's buffer.
type message struct {
	typ, flags uint16
	seq, port  uint32
	payload    []byte
}

// ends tells whether nothing follows the message.
func (m message) ends() bool { return m.typ == unix.NLMSG_ERROR || m.typ == unix.NLMSG_DONE }

// empty tells whether the message has no meaning.
func (m message) empty() bool { return m.typ < unix.NLMSG_MIN_TYPE && !m.ends() }

// split takes the first message from b. After an error nothing of b can be trusted, and rest is empty.
func split(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, ErrMalformed
	}
	length := binary.NativeEndian.Uint32(b)
	if length < unix.NLMSG_HDRLEN || uint64(length) > uint64(len(b)) {
		return m, nil, ErrMalformed
	}
	m = message{
		typ:     binary.NativeEndian.Uint16(b[4:]),
		flags:   binary.NativeEndian.Uint16(b[6:]),
		seq:     binary.NativeEndian.Uint32(b[8:]),
		port:    binary.NativeEndian.Uint32(b[12:]),
		payload: b[unix.NLMSG_HDRLEN:length],
	}
	return m, b[min(align(int(length)), len(b)):], nil
}

// AppendHeader begins a request; its family's own header and its attributes are appended after it. The Conn that
// sends it writes its length, its sequence number and the flags for the kind of request into it.
func AppendHeader(b []byte, typ, flags uint16) []byte {
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0)
}

func finishHeader(req []byte, flags uint16, seq, port uint32) error {
	if len(req) < unix.NLMSG_HDRLEN || len(req) > math.MaxInt32 {
		return fmt.Errorf("send netlink request of %d bytes: %w", len(req), ErrMalformed)
	}
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	flags |= binary.NativeEndian.Uint16(req[6:])
	binary.NativeEndian.PutUint16(req[6:], flags)
	binary.NativeEndian.PutUint32(req[8:], seq)
	binary.NativeEndian.PutUint32(req[12:], port)
	return nil
}

// align rounds up to the next multiple of 4, at which netlink puts messages and attributes.
func align(n int) int { return (n + 3) &^ 3 }
