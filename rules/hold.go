package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"

	"curfew/ctpolicy/conntrack"
)

// holdFor is longer than it takes to replace the entries, and shorter than TCP waits before it asks again.
const holdFor = time.Second

// Hold makes the rules drop packets in mid-flow that conntrack does not know, with the ports of these tuples, for a second:
// nothing may answer them while an entry is being replaced. TCP sends them again.
func Hold(tuples ...conntrack.Tuple) error {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	for part := range slices.Chunk(heldElements(tuples), maxElements) {
		set := heldSet()
		// As in Beat: adding an element again does not refresh it everywhere.
		err := errors.Join(conn.SetAddElements(set, part), conn.SetDeleteElements(set, part), conn.SetAddElements(set, part))
		if err != nil {
			return fmt.Errorf("hold packets: %w", err)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("hold packets: %w", err)
	}
	return nil
}

// heldElements are the pairs of ports, each once.
func heldElements(tuples []conntrack.Tuple) []nftables.SetElement {
	known := map[[2]uint16]bool{}
	var elements []nftables.SetElement
	for _, t := range tuples {
		pair := [2]uint16{t.Src.Port(), t.Dst.Port()}
		if known[pair] {
			continue
		}
		known[pair] = true
		key := append(binary.BigEndian.AppendUint16(nil, pair[0]), 0, 0)
		key = append(binary.BigEndian.AppendUint16(key, pair[1]), 0, 0)
		elements = append(elements, nftables.SetElement{Key: key, Timeout: holdFor})
	}
	return elements
}
