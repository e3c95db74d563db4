package rules

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// Fill is how many flows the fallback's register holds, of IPv4 and of IPv6.
func Fill() (flows4, flows6 int, err error) {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("open nftables netlink: %w", err)
	}
	defer conn.Close()
	if flows4, err = countElements(conn, flowsSet(&families[0])); err != nil {
		return 0, 0, err
	}
	flows6, err = countElements(conn, flowsSet(&families[1]))
	return flows4, flows6, err
}

// countElements counts the elements of a set without decoding them.
func countElements(conn *nl.Conn, set string) (n int, err error) {
	req := appendSetRequest(nil, unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, set)
	err = conn.Dump(req, func(_ uint16, payload []byte) error {
		n += elementsIn(payload)
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, ErrNotInstalled
	}
	if err != nil {
		return 0, fmt.Errorf("count set %s: %w", set, err)
	}
	return n, nil
}

// elementsIn counts those of a NEWSETELEM message.
func elementsIn(payload []byte) (n int) {
	const header = 4 // struct nfgenmsg
	list := nl.ParseAttrs(payload[min(header, len(payload)):])
	for list.Next() {
		if list.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for elements := nl.ParseAttrs(list.Value()); elements.Next(); {
			n++
		}
	}
	return n
}
