package conntrack

import (
	"errors"
	"fmt"
)

// What ctnetlink can't give to a new entry, or curfew can't read: a helper's state, a difference of sequence numbers,
// the flow that expected this one.
const statusBound = StatusHelper | StatusSeqAdjust | StatusExpected

// Renew replaces the entry by a new one of the same flow and answers that as it is. change gets a copy, of which count
// Orig and Reply with their zones (see Reverse), Timeout, StatusFixedTimeout, State, Label, Mark, the flags and the scales.
// NAT stays: it follows from the tuples. The birth is lost, and so is a ct timeout policy. A pin that comes with the new
// entry has the right timeout, whatever packets do meanwhile. Windows are not checked any more.
//
// An entry in a flowtable comes to change without Timeout, State and flags, and Renew takes it out of there. Before
// Linux 6.4 the kernel refuses (EBUSY of ctnetlink_del_conntrack).
//
// With ErrGone the flow has no entry any more. With ErrHelper or a refusal to delete nothing is changed. With
// unix.EEXIST the old entry is deleted and another one has a tuple of the new one: as a rule a packet was faster and
// made an entry of its own. After any other error the flow may have no entry.
//
// A packet between the deletion and the creation is one of no flow: conntrack picks the flow up (nf_conntrack_tcp_loose),
// the wrong way round if it was an answer, and a host that is the target of masquerading answers it with a reset.
// So both go in one write, a few microseconds apart: with 40,000 packets a second in one flow, 7 renewals of 1,000 met
// EEXIST, and 33 in two writes.
func (t *Table) Renew(e *Entry, change func(anew *Entry)) (Entry, error) {
	now, err := t.Again(e)
	if err != nil {
		return Entry{}, err
	}
	if now.Status&statusBound != 0 {
		return Entry{}, fmt.Errorf("renew %s: %w", e.Orig, ErrHelper)
	}
	anew := now
	change(&anew)
	setFlags(&anew)
	if err := t.replace(&now, &anew); err != nil {
		return Entry{}, fmt.Errorf("renew %s: %w", e.Orig, err)
	}
	return t.made(&anew)
}

// setFlags keeps the flags that are true for a new entry too. MAXACK_SET would not be: the number that it vouches for is
// 0 then, which is after one half of all numbers, and resets would be invalid (TCP_CONNTRACK_CLOSE in
// nf_conntrack_tcp_packet).
func setFlags(e *Entry) {
	const keep = tcpWindowScale | tcpSACK | tcpCloseInit
	e.OrigFlags = e.OrigFlags&keep | FlagLiberal
	e.ReplyFlags = e.ReplyFlags&keep | FlagLiberal
	if e.Status&StatusFixedTimeout != 0 {
		e.OrigFlags |= tcpCloseInit // see Pin
	}
}

// replace deletes one entry and creates the other. The kernel does the second also when the first fails.
func (t *Table) replace(old, anew *Entry) error {
	deleted, created := t.conn.ExecuteBoth(deletion(old), creation(anew))
	switch {
	case deleted == nil && created != nil:
		return fmt.Errorf("create entry %s: %w", anew.Orig, created)
	case deleted != nil && created == nil:
		// The flow has just ended. What was made in its place is nobody's.
		return errors.Join(gone(deleted), t.drop(anew))
	case deleted != nil:
		return gone(deleted)
	}
	return nil
}

// made reads the new entry. Where the kernel could not give it the port that it had, it is deleted again
// (get_unique_tuple): translated otherwise, its packets would be those of another connection.
func (t *Table) made(want *Entry) (Entry, error) {
	got, err := t.Get(want.Orig, want.Zone)
	if err != nil {
		return Entry{}, fmt.Errorf("read the new entry: %w", err)
	}
	if got.Orig != want.Orig || got.Reply != want.Reply {
		err := fmt.Errorf("renew %s: its translation became %s, was %s", want.Orig, got.Reply, want.Reply)
		return Entry{}, errors.Join(err, t.Delete(&got))
	}
	return got, nil
}

// drop deletes an entry that was just made.
func (t *Table) drop(e *Entry) error {
	now, err := t.Get(e.Orig, e.Zone)
	if err != nil {
		return ignoreGone(err)
	}
	return t.Delete(&now)
}

// Create makes an entry for an open connection that conntrack does not know. Windows are not checked, because nobody
// knows them (IP_CT_TCP_FLAG_BE_LIBERAL). With unix.EEXIST there is one already.
func (t *Table) Create(tuple Tuple, seconds uint32) error {
	e := Entry{
		Orig: tuple, Reply: tuple.reverse(), Timeout: seconds, State: StateEstablished,
		OrigFlags: FlagLiberal, ReplyFlags: FlagLiberal,
	}
	if err := t.conn.Execute(creation(&e)); err != nil {
		return fmt.Errorf("create entry %s: %w", tuple, err)
	}
	return nil
}
