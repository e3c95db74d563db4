package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/internal/nl"
)

// Resets reads which ends of flows the rules have reset. It must not be used by two goroutines at once.
type Resets struct {
	conn *nl.Conn
	req  []byte
}

// OpenResets opens it in the calling thread's network namespace.
func OpenResets() (*Resets, error) {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("open nftables netlink: %w", err)
	}
	return &Resets{conn: conn}, nil
}

// Close closes it.
func (r *Resets) Close() error { return r.conn.Close() }

// Closed tells how long ago the rules last answered a packet from one end of a pinned flow to the other with a reset, after
// its deadline, or saw a reset from it. It is not ok when they have not in the last ctpolicy.Window. The addresses are those
// that this end knows. It answers ErrNotInstalled when the table is gone.
func (r *Resets) Closed(from, to netip.AddrPort) (ago time.Duration, ok bool, err error) {
	f := &families[0]
	if from.Addr().Is6() {
		f = &families[1]
	}
	r.req = appendGetElement(r.req[:0], closedSet(f), f.key(from, to))
	err = r.conn.Request(r.req, func(_ uint16, payload []byte) error {
		ago, ok = sinceUpdate(payload)
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, false, r.installed(closedSet(f)) // no such element, or no such set
	}
	if err != nil {
		return 0, false, fmt.Errorf("read set %s: %w", closedSet(f), err)
	}
	return ago, ok, nil
}

// installed answers ErrNotInstalled when the set is not there.
func (r *Resets) installed(set string) error {
	r.req = appendSetRequest(r.req[:0], unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, set)
	err := r.conn.Request(r.req, func(uint16, []byte) error { return nil })
	if errors.Is(err, unix.ENOENT) {
		return ErrNotInstalled
	}
	if err != nil {
		return fmt.Errorf("read set %s: %w", set, err)
	}
	return nil
}

// key is an element of the set: each part is padded to 4 bytes.
func (f *family) key(from, to netip.AddrPort) []byte {
	var key []byte
	for _, end := range []netip.AddrPort{from, to} {
		key = append(key, end.Addr().AsSlice()...)
		key = append(binary.BigEndian.AppendUint16(key, end.Port()), 0, 0)
	}
	return key
}

// appendGetElement asks for one element (nf_tables_getsetelem).
func appendGetElement(b []byte, set string, key []byte) []byte {
	b = appendSetRequest(b, unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, set)
	const nested = unix.NLA_F_NESTED
	inner := appendAttr(nil, unix.NFTA_DATA_VALUE, key)
	for _, typ := range []uint16{unix.NFTA_SET_ELEM_KEY | nested, unix.NFTA_LIST_ELEM | nested} {
		inner = appendAttr(nil, typ, inner)
	}
	return appendAttr(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS|nested, inner)
}

// appendSetRequest begins a request about a set of our table.
func appendSetRequest(b []byte, message uint16, tableAttr, setAttr uint16, set string) []byte {
	b = nl.AppendHeader(b, unix.NFNL_SUBSYS_NFTABLES<<8|message, 0)
	b = append(b, unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0)
	b = appendAttr(b, tableAttr, append([]byte(TableName), 0))
	return appendAttr(b, setAttr, append([]byte(set), 0))
}

// appendAttr is for values that are known to be short.
func appendAttr(b []byte, typ uint16, value []byte) []byte {
	b, _ = nl.AppendAttr(b, typ, value)
	return b
}

// sinceUpdate finds the element's time left in a NEWSETELEM message.
func sinceUpdate(payload []byte) (ago time.Duration, ok bool) {
	const header = 4 // struct nfgenmsg
	path := []uint16{unix.NFTA_SET_ELEM_LIST_ELEMENTS, unix.NFTA_LIST_ELEM, unix.NFTA_SET_ELEM_EXPIRATION}
	value := payload[min(header, len(payload)):]
	for _, typ := range path {
		a := nl.ParseAttrs(value)
		for ok = false; !ok && a.Next(); {
			ok = a.Type() == typ
		}
		if !ok {
			return 0, false
		}
		value = a.Value()
	}
	if len(value) < 8 {
		return 0, false
	}
	left := time.Duration(binary.BigEndian.Uint64(value)) * time.Millisecond
	return max(0, ctpolicy.Window-left), true
}
