package nl

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

var (
	// ErrInterrupted means that a dump is incomplete, because the table changed under it or answers were lost.
	ErrInterrupted = errors.New("dump was interrupted")

	// ErrMalformed means that a message or an attribute contradicts its own length.
	ErrMalformed = errors.New("malformed netlink message")

	// ErrTimeout means that the kernel did not answer.
	ErrTimeout = errors.New("no answer from the kernel")
)

// Error is a refusal by the kernel. errors.Is(err, unix.ENOENT) and the like look into it.
type Error struct {
	Errno unix.Errno
	Msg   string // the kernel's own explanation, often empty
}

func (e *Error) Error() string {
	if e.Msg == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + " (" + e.Msg + ")"
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// result reads an NLMSG_ERROR or NLMSG_DONE message: nil is an acknowledgement or a complete dump.
// See netlink_ack and netlink_dump_done in net/netlink/af_netlink.c.
func (m message) result() error {
	if len(m.payload) < 4 {
		return ErrMalformed
	}
	code := int32(binary.NativeEndian.Uint32(m.payload))
	switch {
	case code == 0 || (code > 0 && m.typ == unix.NLMSG_DONE):
		return nil
	case code > 0:
		return ErrMalformed
	}
	errno := unix.Errno(-int64(code))
	if m.typ == unix.NLMSG_DONE && (errno == unix.EINTR || errno == unix.ENOBUFS) {
		return ErrInterrupted
	}
	return &Error{Errno: errno, Msg: m.explanation()}
}

// explanation is the text of the extended acknowledgement, or nothing.
func (m message) explanation() string {
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return ""
	}
	attrs := m.payload[4:]
	if m.typ == unix.NLMSG_ERROR {
		attrs = skipEcho(attrs, m.flags&unix.NLM_F_CAPPED != 0)
	}
	for a := ParseAttrs(attrs); a.Next(); {
		if a.Type() == unix.NLMSGERR_ATTR_MSG {
			text, _, _ := bytes.Cut(a.Value(), []byte{0})
			return string(text)
		}
	}
	return ""
}

// skipEcho skips the request's header, and its payload when the kernel copied that too.
func skipEcho(b []byte, capped bool) []byte {
	if len(b) < unix.NLMSG_HDRLEN {
		return nil
	}
	if capped {
		return b[unix.NLMSG_HDRLEN:]
	}
	_, rest, _ := split(b)
	return rest
}
