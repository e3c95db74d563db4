package rules

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// lookup is a match on a set, or a map from or to marks.
func (r *markRun) lookup(w *expr.Lookup) error {
	held, offset, byMark := r.key(w.SourceRegister)
	values := w.IsDestRegSet && w.DestRegister != unix.NFT_REG_VERDICT
	if !byMark && !values {
		return nil
	}
	elements, err := r.elements(w.SetName)
	if err != nil {
		return fmt.Errorf("list set %s: %w", w.SetName, err)
	}
	if byMark {
		r.find(held, offset, whole(elements), w.Invert)
	}
	clear(r.held) // the match is over
	if values {
		r.load(w.DestRegister, elements)
	}
	return nil
}

// key finds the mark in the key that begins with a register, and its offset there.
func (r *markRun) key(register uint32) (held pair, offset int, ok bool) {
	first := place(register)
	for p := first; p < first+16; p++ {
		if held, ok := r.held[p]; ok {
			return held, int(p-first) * 4, true
		}
	}
	return pair{}, 0, false
}

// load takes the packet to be one that the map gives our mark, if there is any.
func (r *markRun) load(register uint32, elements []nftables.SetElement) {
	r.forget(register)
	if slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return bytes.Equal(e.Val, native32(r.mark)) }) {
		r.held[place(register)] = pair{r.mark, r.mark}
	}
}

// find looks for both packets' marks in the set. When both are there, it matters what else the elements say: the rest of
// the key, and where a map leads.
func (r *markRun) find(held pair, offset int, elements []nftables.SetElement, invert bool) {
	hits := [2]map[string]bool{ours: matching(elements, held[ours], offset), unmarked: matching(elements, held[unmarked], offset)}
	if r.through[ours] && r.through[unmarked] && !maps.Equal(hits[ours], hits[unmarked]) {
		r.collides = true
	}
	for i := range hits {
		holds := len(hits[i]) > 0
		if invert {
			holds = !hits[i][""]
		}
		r.through[i] = r.through[i] && holds
	}
}

// matching answers what the elements for the value say besides.
func matching(elements []nftables.SetElement, value uint32, offset int) map[string]bool {
	hits := map[string]bool{}
	for _, e := range elements {
		if len(e.Key) == 0 || len(e.Key) >= offset+4 && contains(e, value, offset) {
			hits[rest(e, offset)] = true // without a key it is nft's "*"
		}
	}
	return hits
}

// whole makes one element of the two that an interval of marks is, where it begins and where the next thing does.
func whole(elements []nftables.SetElement) []nftables.SetElement {
	if !slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return e.IntervalEnd }) {
		return elements
	}
	turn := map[bool]int{true: 1, false: 2} // one interval ends where the next begins
	sorted := slices.SortedFunc(slices.Values(elements), func(a, b nftables.SetElement) int {
		return cmp.Or(bytes.Compare(a.Key, b.Key), cmp.Compare(turn[a.IntervalEnd], turn[b.IntervalEnd]))
	})
	var intervals []nftables.SetElement
	for i, e := range sorted {
		if e.IntervalEnd {
			continue
		}
		if len(e.Key) == 4 {
			e.KeyEnd = before(sorted[i+1:])
		}
		intervals = append(intervals, e)
	}
	return intervals
}

// before is the last mark before the next element, or the last of all.
func before(next []nftables.SetElement) []byte {
	end := uint32(math.MaxUint32)
	if len(next) > 0 {
		end = binary.BigEndian.Uint32(next[0].Key) - 1
	}
	return binary.BigEndian.AppendUint32(nil, end)
}

// contains compares in the byte order that the kernel has: the host's, and big-endian in a set of intervals.
func contains(e nftables.SetElement, value uint32, offset int) bool {
	if len(e.KeyEnd) < offset+4 {
		return binary.NativeEndian.Uint32(e.Key[offset:]) == value
	}
	return binary.BigEndian.Uint32(e.Key[offset:]) <= value && value <= binary.BigEndian.Uint32(e.KeyEnd[offset:])
}

// rest is an element without the mark in its key.
func rest(e nftables.SetElement, offset int) string {
	var b []byte
	for _, key := range [][]byte{e.Key, e.KeyEnd} {
		if len(key) >= offset+4 {
			b = slices.Concat(b, key[:offset], key[offset+4:])
		}
	}
	return string(append(b, e.Val...))
}
