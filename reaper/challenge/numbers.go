package challenge

import "math/bits"

// numbers are what a challenge says instead of the connection's true numbers, which nobody here knows.
//
// A segment that happens to be in the receive window (a chance of window/2^32) does no harm, as it has no data: an
// old ACK number gets a challenge ACK (RFC 5961 section 5.2), one ahead of what was sent is dropped (tcp_ack). To be
// believed, the ACK number would have to be one in flight as well, a chance of inflight/2^32 on top.
//
// There is no timestamp option. Linux then skips PAWS and the sequence check decides, whatever was negotiated. With one, Linux
// since 6.14 stays silent when timestamp and sequence number both look old (SKB_DROP_REASON_TCP_RFC7323_PAWS_ACK).
// The price: a TCP that insists on timestamps (RFC 7323 section 3.2 says SHOULD; FreeBSD with
// net.inet.tcp.tolerate_missing_ts=0) stays silent.
type numbers struct{ seq, ack uint32 }

// forAttempt goes around the number space, so that one of four attempts always gets through.
//
//	attempt   0    1    2    3   of the space
//	seq       0   1/2  1/4  3/4
//	ack       0    0   1/2  1/2
//
// No window is larger than a quarter (2^30, RFC 7323 section 2.3), so at most one of the four is in it. And in exactly one of
// each two halves a number looks old: connection tracking on the way calls a number from the future invalid, but lets a segment
// pass in which both look old (tcp_in_window, NFCT_TCP_IGNORE, since Linux 6.1).
func (n numbers) forAttempt(attempt int) numbers {
	k := uint32(attempt)
	return numbers{seq: n.seq + bits.Reverse32(k), ack: n.ack + k<<30&(1<<31)}
}
