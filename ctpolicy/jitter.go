package ctpolicy

import (
	"encoding/binary"
	"math/bits"
	"time"

	"curfew/ctpolicy/conntrack"
)

// AgeLimit is the age at which the time of the flow with this original tuple is up: MaxAge, and with Jitter up to so many
// percent more. It is never less than MaxAge and always less than LastAge without Grace. It is 0 without max_age.
func (p *Policy) AgeLimit(orig conntrack.Tuple) time.Duration {
	if p.Jitter == 0 {
		return p.MaxAge
	}
	spread := uint64(p.MaxAge) * uint64(p.Jitter) / 100 // 365 days of nanoseconds times 100 % fit
	share, _ := bits.Mul64(scatter(orig), spread)
	return p.MaxAge + time.Duration(share)
}

// scatter maps tuples evenly to all numbers: FNV-1a over its bytes in network order, and the finalizer of MurmurHash3,
// without which the neighbouring ports of a busy client would stay neighbours. It knows no seed: a restarted reaper and
// another host must find the same.
func scatter(t conntrack.Tuple) uint64 {
	var key [36]byte
	src, dst := t.Src.Addr().As16(), t.Dst.Addr().As16()
	copy(key[:], src[:])
	copy(key[16:], dst[:])
	binary.BigEndian.PutUint16(key[32:], t.Src.Port())
	binary.BigEndian.PutUint16(key[34:], t.Dst.Port())
	sum := uint64(14695981039346656037)
	for _, b := range key {
		sum = (sum ^ uint64(b)) * 1099511628211
	}
	sum = (sum ^ sum>>33) * 0xff51afd7ed558ccd
	sum = (sum ^ sum>>33) * 0xc4ceb9fe1a85ec53
	return sum ^ sum>>33
}
