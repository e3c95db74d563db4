package rules

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// A Change says that somebody has changed the table, or may have.
type Change struct {
	// PID is the process that did it, as the kernel's first PID namespace counts. It is the thread where that has gone
	// already or can't be seen from here, and 0 with Lost.
	PID int
	// Process is its name (comm), cut to 15 bytes.
	Process string
	// Lost says that messages of the kernel were lost or not understood: the table may have changed.
	Lost bool
}

// Watch tells of changes of the table by anybody, curfew included. Next must not be called by two goroutines at once.
type Watch struct {
	listener *nl.Listener
	current  watched
}

// OpenWatch watches the calling thread's network namespace. It sees each change from now on: whoever reads the table after
// OpenWatch misses none. It needs no table.
func OpenWatch() (*Watch, error) {
	l, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("watch nftables: %w", explainPermission(err))
	}
	return &Watch{listener: l}, nil
}

// Close ends the Watch, and a Next that waits. Any goroutine may call it.
func (w *Watch) Close() error { return w.listener.Close() }

// Next waits until a transaction has changed something of table inet curfew. Those that only add or delete elements which
// come and go (see comesAndGoes) are none. After Close its error is os.ErrClosed; after any error the Watch is of no use.
func (w *Watch) Next() (Change, error) {
	for {
		typ, payload, err := w.listener.Receive()
		var change Change
		var ok bool
		if err == nil {
			change, ok, err = w.current.message(typ, payload)
		}
		switch {
		case errors.Is(err, nl.ErrOverrun), errors.Is(err, nl.ErrMalformed):
			w.current = watched{}
			return Change{Lost: true}, nil
		case err != nil:
			return Change{}, fmt.Errorf("watch nftables: %w", err)
		case ok:
			change.PID = processOf(change.PID, change.Process)
			return change, nil
		}
	}
}

// watched is what the messages of a transaction have said so far. The kernel sends them when it is done, and then one of
// the new generation (nf_tables_commit of net/netfilter/nf_tables_api.c).
type watched struct{ touched bool }

// message is true when it ends a transaction that has changed the table. The Change's PID is that of the thread.
func (w *watched) message(typ uint16, payload []byte) (Change, bool, error) {
	if typ>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return Change{}, false, nil
	}
	if typ&0xff != unix.NFT_MSG_NEWGEN {
		touched, err := touches(typ&0xff, payload)
		w.touched = w.touched || touched
		return Change{}, false, err
	}
	touched := w.touched
	w.touched = false
	if !touched {
		return Change{}, false, nil
	}
	a, err := parseMessage(payload)
	if err != nil {
		return Change{}, false, err
	}
	tid, err := a.number(unix.NFTA_GEN_PROC_PID)
	return Change{PID: int(tid), Process: a.text(unix.NFTA_GEN_PROC_NAME)}, err == nil, err
}

// touches tells whether a message is about our table, and not only about an element that comes and goes. It looks at all
// messages of all tables, so it allocates nothing: attribute 1 is always the table's name.
func touches(message uint16, payload []byte) (bool, error) {
	const header = 4 // struct nfgenmsg
	if len(payload) < header {
		return false, nl.ErrMalformed
	}
	if payload[0] != unix.NFPROTO_INET {
		return false, nil
	}
	var ours bool
	var set []byte
	a := nl.ParseAttrs(payload[header:])
	for a.Next() {
		value, _, _ := bytes.Cut(a.Value(), []byte{0})
		switch a.Type() {
		case attrTable:
			ours = string(value) == TableName
		case unix.NFTA_SET_ELEM_LIST_SET:
			set = value
		}
	}
	return ours && !comesAndGoes(message, set), a.Err()
}

// comesAndGoes tells whether a message is about an element of a set which rules fill, or a reaper, and from which a
// timeout takes it away. For other kinds of messages the name is that of something else.
func comesAndGoes(message uint16, set []byte) bool {
	if message != unix.NFT_MSG_NEWSETELEM && message != unix.NFT_MSG_DELSETELEM {
		return false
	}
	switch name := string(set); name {
	case setAlive, setAdopt, setHeld, "heartbeat", "flows4", "flows6", "closed4", "closed6":
		return true
	default:
		return (strings.Contains(name, "-max-") || strings.Contains(name, "-new-")) && !fixedElements(name)
	}
}

// fixedElements tells whether it is the name of a map of ports or of a policy's addresses, whatever the policy is called.
func fixedElements(name string) bool {
	for _, suffix := range []string{"-by-port", "-from4", "-from6", "-to4", "-to6", "-except4", "-except6"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// processOf is the process of a thread. Another PID namespace counts differently, and a thread that has gone may have lent
// its number to another one, so the name must be the same.
func processOf(tid int, name string) int {
	dir := "/proc/" + strconv.Itoa(tid)
	comm, err := os.ReadFile(dir + "/comm")
	if err != nil || strings.TrimSuffix(string(comm), "\n") != name {
		return tid
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return tid
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				return pid
			}
		}
	}
	return tid
}
