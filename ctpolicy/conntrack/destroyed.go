package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// PortRange is the ports First to Last, both included.
type PortRange struct{ First, Last uint16 }

// Destroyed tells that entries of open TCP flows went away. Next must not be called by two goroutines at once.
//
// An entry tells of its end only if it was made for that when it was born (nf_ct_ecache_ext_add of
// nf_conntrack_ecache.c). That depends on the sysctl net.netfilter.nf_conntrack_events at its birth:
//
//	0  it never tells
//	1  it always does
//	2  the default: it does if anybody on the machine, in any network namespace, listened to conntrack's events then
//
// So with 2 the flows that were open before OpenDestroyed go away without a word, unless somebody else (conntrackd) was
// there before. What the sysctl says later makes no difference. Events come at once for `conntrack -F` and `conntrack -D`
// and for deletions through a Table, and for an entry that expires in an open state when the kernel collects it. Our own
// deletions are among them: Next is a hint to look, and not a count.
type Destroyed struct{ listener *nl.Listener }

// OpenDestroyed listens in the calling thread's network namespace. The kernel drops all events but those of flows that are
// ESTABLISHED, FIN_WAIT, CLOSE_WAIT or LAST_ACK and whose original direction has a destination or source port in these
// ranges. Others wake nobody and take no room; but the kernel has to write their message, and without a listener it would
// not. Of more than maxFilterRanges ranges, and where the system's net.core.optmem_max allows no such filter, all open TCP
// flows count.
func OpenDestroyed(ports []PortRange) (*Destroyed, error) {
	l, err := subscribe(destroyFilter(ports))
	if errors.Is(err, unix.ENOMEM) {
		l, err = subscribe(destroyFilter(allPorts))
	}
	if err != nil {
		return nil, fmt.Errorf("listen to conntrack: %w", err)
	}
	return &Destroyed{l}, nil
}

func subscribe(filter []unix.SockFilter) (*nl.Listener, error) {
	return nl.SubscribeFiltered(unix.NETLINK_NETFILTER, filter, unix.NFNLGRP_CONNTRACK_DESTROY)
}

// Next waits until at least one such entry went away, or may have, because messages were lost. What has happened until it
// returns counts as one. After Close its error is os.ErrClosed; after any error the Destroyed is of no use.
func (d *Destroyed) Next() error {
	_, _, err := d.listener.Receive()
	if err == nil {
		err = d.listener.Discard()
	}
	if err != nil && !errors.Is(err, nl.ErrOverrun) && !errors.Is(err, nl.ErrMalformed) {
		return fmt.Errorf("listen to conntrack: %w", err)
	}
	return nil
}

// Close ends it, and a Next that waits. Any goroutine may call it.
func (d *Destroyed) Close() error { return d.listener.Close() }
