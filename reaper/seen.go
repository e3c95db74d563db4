package reaper

import (
	"encoding/binary"
	"hash/maphash"

	"curfew/ctpolicy/conntrack"
)

// seen remembers in constant memory which tuples a dump held: a Bloom filter. It may take a tuple for seen that was
// not, but never the opposite, and each sweep has another seed, so nothing is overlooked for long.
type seen struct {
	seed maphash.Seed
	bits [1 << 17]uint64 // 1 MiB
}

func (s *seen) reset() {
	s.seed = maphash.MakeSeed()
	clear(s.bits[:])
}

func (s *seen) add(t conntrack.Tuple) {
	a, b := s.places(t)
	s.bits[a/64] |= 1 << (a % 64)
	s.bits[b/64] |= 1 << (b % 64)
}

func (s *seen) has(t conntrack.Tuple) bool {
	a, b := s.places(t)
	return s.bits[a/64]&(1<<(a%64)) != 0 && s.bits[b/64]&(1<<(b%64)) != 0
}

func (s *seen) places(t conntrack.Tuple) (a, b uint32) {
	const mask = uint32(len(s.bits)*64 - 1)
	sum := s.sum(t)
	return uint32(sum) & mask, uint32(sum>>32) & mask
}

// sum is a hash of the tuple, another one for each sweep.
func (s *seen) sum(t conntrack.Tuple) uint64 {
	var key [36]byte
	src, dst := t.Src.Addr().As16(), t.Dst.Addr().As16()
	copy(key[:], src[:])
	copy(key[16:], dst[:])
	binary.NativeEndian.PutUint16(key[32:], t.Src.Port())
	binary.NativeEndian.PutUint16(key[34:], t.Dst.Port())
	return maphash.Bytes(s.seed, key[:])
}
