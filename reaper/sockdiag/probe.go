package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"curfew/internal/nl"
)

// Probe does one look-up and one destroy of each family, of a socket that can't exist, so that the kernel loads its
// modules now and not when they are needed. ErrUnsupported means that Destroy will never work, EPERM that
// CAP_NET_ADMIN is missing.
func (c *Conn) Probe() error {
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if err := c.probe(a); err != nil {
			return fmt.Errorf("probe sock_diag: %w", err)
		}
	}
	return nil
}

// probe uses port 0, which no socket in the hash tables has.
func (c *Conn) probe(a netip.Addr) error {
	nowhere := netip.AddrPortFrom(a, 0)
	if _, err := c.exact(familyOf(a), nowhere, nowhere, 0); !errors.Is(err, ErrNotFound) {
		return unexpected("look up", err)
	}
	id := newID(nowhere, nowhere, 0)
	putCookie(&id, noCookie-1)
	if err := c.destroy(familyOf(a), &id); !errors.Is(err, ErrNotFound) {
		return unexpected("destroy", err)
	}
	return c.probePrivilege(familyOf(a))
}

// probePrivilege asks for nothing, filtered by mark. A destroy checks for CAP_NET_ADMIN only when the socket exists
// (sock_diag_destroy), but a filter by mark needs it too, and at once (inet_diag_bc_audit).
func (c *Conn) probePrivilege(family uint8) error {
	code := appendOp(nil, opMark, markSize, markSize+opSize)
	code = binary.NativeEndian.AppendUint64(code, 0) // mark and mask
	c.req = appendRequest(c.req[:0], sockDiagByFamily, family, 0, 0, new([idSize]byte))
	req, err := nl.AppendAttr(c.req, attrReqBytecode, code)
	if err != nil {
		return err
	}
	if err := c.nl.Dump(req, func(uint16, []byte) error { return nil }); err != nil {
		return fmt.Errorf("check privilege: %w", err)
	}
	return nil
}

func unexpected(what string, err error) error {
	if err == nil {
		err = errors.New("no error")
	}
	return fmt.Errorf("%s a socket that can't exist: %w", what, err)
}
