package rules

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// digestAttempts is how often the table is read before Digest gives up because it changes all the time.
const digestAttempts = 5

// Digest is a short text that is the same as long as nobody has changed the table: its flags, chains, rules and their
// order, sets, the elements that rules don't add, and objects. It doesn't depend on the order in which they were made, on
// what traffic changes (counters, elements with a timeout), nor on notes. It is of use within one boot only: it hashes
// what this kernel sends, byte by byte.
//
// It answers ErrNotInstalled when there is no table, and ErrInterrupted when the rules, also those of others, changed
// under each of its five attempts: the table may be as it was, and the caller tries again later.
func Digest() (string, error) {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, 1<<20)
	if err != nil {
		return "", fmt.Errorf("open nftables netlink: %w", err)
	}
	defer conn.Close()
	var sum string
	for range digestAttempts {
		if sum, err = digestOnce(conn); !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	if errors.Is(err, ErrNotInstalled) {
		return "", err
	}
	if err != nil {
		return "", fmt.Errorf("digest table inet curfew: %w", explainPermission(err))
	}
	return sum, nil
}

// ErrInterrupted says that the rules changed while they were read.
var ErrInterrupted = nl.ErrInterrupted

// digestOnce reads everything of one generation.
func digestOnce(conn *nl.Conn) (string, error) {
	first, err := generation(conn)
	if err != nil {
		return "", err
	}
	d := digest{ruleCount: map[string]uint32{}}
	if err := d.readTable(conn); err != nil {
		return "", err
	}
	if err := d.readParts(conn); err != nil {
		return "", err
	}
	if last, err := generation(conn); err != nil || last != first {
		return "", errors.Join(err, ErrInterrupted)
	}
	return d.String(), nil
}

func (d *digest) readTable(conn *nl.Conn) error {
	req := appendTableRequest(unix.NFT_MSG_GETTABLE)
	err := conn.Request(req, d.handle(d.table))
	if errors.Is(err, unix.ENOENT) {
		return ErrNotInstalled
	}
	return err
}

// readParts makes one dump of each kind, and one of each set's elements, which the kernel sends only so.
func (d *digest) readParts(conn *nl.Conn) error {
	for _, part := range []struct {
		message uint16
		add     func(attributes) error
	}{
		{unix.NFT_MSG_GETCHAIN, d.chain},
		{unix.NFT_MSG_GETRULE, d.rule},
		{unix.NFT_MSG_GETSET, d.set},
		{unix.NFT_MSG_GETOBJ, d.object},
	} {
		if err := conn.Dump(appendTableRequest(part.message), d.handle(part.add)); err != nil {
			return err
		}
	}
	for _, set := range d.lasting {
		req := appendSetRequest(nil, unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, set)
		err := conn.Dump(req, d.handle(d.elements))
		if errors.Is(err, unix.ENOENT) {
			return ErrInterrupted // it has gone since
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// handle gives the attributes of messages about our table to fn.
func (d *digest) handle(fn func(attributes) error) nl.Handler {
	return func(_ uint16, payload []byte) error {
		a, ours, err := aboutTable(payload)
		if err != nil || !ours {
			return err
		}
		return fn(a)
	}
}

// appendTableRequest asks for something of our table. All kinds have the table's name in attribute 1; kernels that don't
// filter by it send all tables of the family.
func appendTableRequest(message uint16) []byte {
	b := nl.AppendHeader(nil, unix.NFNL_SUBSYS_NFTABLES<<8|message, 0)
	b = append(b, unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0)
	return appendAttr(b, attrTable, append([]byte(TableName), 0))
}

// generation numbers the changes of all rules of the network namespace.
func generation(conn *nl.Conn) (id uint32, err error) {
	req := nl.AppendHeader(nil, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req = append(req, unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, 0)
	err = conn.Request(req, func(_ uint16, payload []byte) error {
		a, err := parseMessage(payload)
		if err == nil {
			id, err = a.number(unix.NFTA_GEN_ID)
		}
		return err
	})
	return id, err
}
