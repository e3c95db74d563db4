package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// What a call that changes the table can answer, beside the kernel's own errors.
var (
	// ErrGone says that the entry does not exist any more, or that its tuple belongs to another flow now.
	ErrGone = errors.New("entry is gone")
	// ErrHelper says that an entry can't be made anew without losing what it is for.
	ErrHelper = errors.New("entry has a helper or changed sequence numbers")
)

// A Table changes single entries of the conntrack table of the namespace in which it was opened. It is not safe for
// concurrent use. Netlink changes an entry by its tuple, so each call first compares identities.
type Table struct{ conn *nl.Conn }

// answerBuffer holds the few answers to one or two requests.
const answerBuffer = 64 << 10

// OpenTable needs CAP_NET_ADMIN from the first change on.
func OpenTable() (*Table, error) {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, answerBuffer)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &Table{conn}, nil
}

// Close closes the socket.
func (t *Table) Close() error { return t.conn.Close() }

// Same tells whether both entries are the same flow, and not two that used the same tuple one after the other. The
// kernel's id depends on the address of the entry and on its tuples (nf_ct_get_id).
func (e *Entry) Same(other *Entry) bool {
	return e.ID == other.ID && e.Start == other.Start && e.Orig == other.Orig && e.Zone == other.Zone
}

// Get reads the entry of a tuple, whichever direction the tuple is; zone is that of the same direction. It answers
// ErrGone when there is none.
func (t *Table) Get(tuple Tuple, zone uint16) (Entry, error) {
	var e Entry
	err := t.conn.Request(about(getEntry, tuple, zone), func(_ uint16, payload []byte) error {
		ok, err := decode(payload, &e)
		if err == nil && !ok {
			return ErrMalformed
		}
		return err
	})
	if err != nil {
		return Entry{}, fmt.Errorf("get %s: %w", tuple, gone(err))
	}
	return e, nil
}

// Again reads the entry as it is now. With ErrGone, which means that it is no longer the same flow's, comes what is in
// its place, if anything.
func (t *Table) Again(e *Entry) (Entry, error) {
	now, err := t.Get(e.Orig, e.Zone)
	if err == nil && !now.Same(e) {
		err = fmt.Errorf("get %s: %w", e.Orig, ErrGone)
	}
	return now, err
}

func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w (%w)", ErrGone, err)
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}
