package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// dumpAttempts is how often a dump is made before an interruption is given back to the caller.
const dumpAttempts = 5

// Dumper reads the table of the network namespace that it was opened in. It must not be used by two
// goroutines at once.
type Dumper struct {
	conn  *nl.Conn
	req   []byte
	entry Entry
}

// Open opens a Dumper with a receive buffer of rcvbuf bytes; 1 MiB serves a table of any size.
// Dump needs CAP_NET_ADMIN.
func Open(rcvbuf int) (*Dumper, error) {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, rcvbuf)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &Dumper{conn: conn}, nil
}

// Close closes the Dumper.
func (d *Dumper) Close() error { return d.conn.Close() }

// Filter chooses entries by status: those with Status&StatusMask == the entry's status&StatusMask. The zero Filter
// takes all.
type Filter struct{ Status, StatusMask uint32 }

// match does again what the kernel did: before Linux 5.15 it sends everything.
func (f Filter) match(e *Entry) bool { return (e.Status^f.Status)&f.StatusMask == 0 }

// Dump calls fn for every TCP entry, IPv4 and IPv6, that the filter takes. The Entry is reused: fn copies what it
// wants to keep. fn must not use the Dumper.
//
// The table changes while it is read, so an entry may come twice, and one born meanwhile not at all. A dump that the
// kernel cut short is started again, and fn then sees entries again: it must be idempotent. When that has happened five
// times, Dump gives up with ErrInterrupted. fn's error ends the dump and is returned wrapped.
func (d *Dumper) Dump(f Filter, fn func(*Entry) error) error {
	var err error
	for range dumpAttempts {
		if err = d.once(f, fn); !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("dump conntrack table: %w", err)
	}
	return nil
}

func (d *Dumper) once(f Filter, fn func(*Entry) error) error {
	d.req = appendDump(d.req[:0], f)
	return d.conn.Dump(d.req, func(typ uint16, payload []byte) error {
		if typ != newEntry {
			return nil
		}
		ok, err := decode(payload, &d.entry)
		if err != nil || !ok || !f.match(&d.entry) {
			return err
		}
		return fn(&d.entry)
	})
}

// appendDump appends a dump request for both families, with the filter of ctnetlink_alloc_filter.
func appendDump(b []byte, f Filter) []byte {
	b = nl.AppendHeader(b, getEntry, 0)
	b = append(b, unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, 0)
	if f.StatusMask == 0 {
		return b
	}
	b = nl.AppendUint32(b, ctaStatus, f.Status&f.StatusMask)
	return nl.AppendUint32(b, ctaStatusMask, f.StatusMask)
}
