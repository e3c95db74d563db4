package rules

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// attributes are the values of a message, or of one nested attribute, by their type. They lie in the message.
type attributes map[uint16][]byte

// text is a value without the zero at its end; empty when it isn't there.
func (a attributes) text(typ uint16) string {
	text, _, _ := bytes.Cut(a[typ], []byte{0})
	return string(text)
}

// number is a value of 4 bytes.
func (a attributes) number(typ uint16) (uint32, error) {
	if len(a[typ]) != 4 {
		return 0, nl.ErrMalformed
	}
	return binary.BigEndian.Uint32(a[typ]), nil
}

func parseAttributes(b []byte) (attributes, error) {
	all := attributes{}
	a := nl.ParseAttrs(b)
	for a.Next() {
		all[a.Type()] = a.Value()
	}
	return all, a.Err()
}

// parseMessage reads what follows the netlink header of an nftables message: struct nfgenmsg, and attributes.
func parseMessage(payload []byte) (attributes, error) {
	const header = 4
	if len(payload) < header {
		return nil, nl.ErrMalformed
	}
	return parseAttributes(payload[header:])
}

// aboutTable is parseMessage, and tells whether the message is about our table or something in it.
func aboutTable(payload []byte) (a attributes, ours bool, err error) {
	a, err = parseMessage(payload)
	return a, err == nil && payload[0] == unix.NFPROTO_INET && a.text(attrTable) == TableName, err
}
