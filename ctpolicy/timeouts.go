package ctpolicy

import (
	"time"

	"curfew/ctpolicy/conntrack"
)

// maxTimeout keeps timeouts below 2^31 jiffies at HZ=1000, where the kernel would cut them (INT_MAX in
// nf_conntrack_netlink.c) or let them overflow (nf_conntrack_proto_tcp.c).
const maxTimeout = 20 * day

// Timeouts are the seconds for which an entry lives after a packet, by TCP state.
type Timeouts = conntrack.Timeouts

// EntryTimeout is how long an entry of an open flow lives after its last packet under this policy. The kernel counts
// whole seconds, so an idle limit gets one more: an entry that reads 0 has been idle for its limit. Without an idle
// limit an entry lasts longer than its flow may. With a rate it lasts as long as an entry can: nobody knows how long its
// flow has to wait for its turn.
func (p *Policy) EntryTimeout() time.Duration {
	timeout := time.Duration(maxTimeout)
	if p.Rate > 0 {
		return timeout
	}
	if p.MaxAge > 0 {
		timeout = min(timeout, p.LastAge()+Window)
	}
	if p.Idle > 0 {
		timeout = min(timeout, p.Idle+time.Second)
	}
	return timeout
}

// Outlived tells that the entry of an open flow expires only when the flow's time is up: then a packet without an
// entry is a stray.
func (p *Policy) Outlived() bool { return p.EntryTimeout() < maxTimeout }

// Timeouts are the values of the policy's ct timeout object. Every state in which data may still flow gets
// EntryTimeout: with the namespace's 60 s for FIN_WAIT a half-closed flow that pauses would lose its entry, and be
// ended, before its limit. CLOSE gets a second, so that a reset flow's port is free again at once. The rest are the
// namespace's own values.
func (p *Policy) Timeouts(namespace Timeouts) Timeouts {
	t := namespace
	open := uint32(p.EntryTimeout() / time.Second)
	for _, state := range []int{
		conntrack.TimeoutEstablished, conntrack.TimeoutFinWait, conntrack.TimeoutCloseWait,
		conntrack.TimeoutLastAck, conntrack.TimeoutRetrans, conntrack.TimeoutUnack,
	} {
		t[state] = open
	}
	t[conntrack.TimeoutClose] = 1
	return t
}
