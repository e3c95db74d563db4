package sockdiag

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Destroy ends the connection of a socket that Lookup or List reported: its owner sees ECONNABORTED, its peer gets a
// RST. It needs CAP_NET_ADMIN in the user namespace of the network namespace, else EPERM.
//
// ErrNotFound means that the socket is gone already; its address may belong to another by now, which is left
// alone. ErrRefused means that the socket is not an open connection. A subflow of an MPTCP connection ends,
// the connection itself after net.mptcp.close_timeout.
func (c *Conn) Destroy(s *Socket) error {
	if err := c.destroyIfOpen(s); err != nil {
		return fmt.Errorf("destroy socket %s: %w", s, err)
	}
	return nil
}

func (c *Conn) destroyIfOpen(s *Socket) error {
	if !s.State.in(openStates) {
		return fmt.Errorf("%w: state %v", ErrRefused, s.State)
	}
	if s.Cookie == 0 || s.Cookie == noCookie || s.Cookie != getCookie(&s.id) {
		return fmt.Errorf("%w: cookie %#x", ErrRefused, s.Cookie)
	}
	return c.destroy(s.family, &s.id)
}

func (c *Conn) destroy(family uint8, id *[idSize]byte) error {
	c.req = appendRequest(c.req[:0], sockDestroy, family, 0, 0, id)
	err := c.nl.Execute(c.req)
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrNotFound
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrUnsupported
	}
	return err
}
