package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// What ctnetlink takes for an open connection, and the TCP flags that it can set
// (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const (
	statusOpen = StatusSeenReply | StatusAssured | StatusConfirmed

	tcpWindowScale = 0x01
	tcpSACK        = 0x02
	tcpCloseInit   = 0x04
)

// Pin fixes the entry's timeout: from now on only the clock moves it. A pin can't be changed, only deleted with its
// entry. The status must hold the bits that the entry has already (ctnetlink_change_status: EBUSY), so it is read
// right before, and once more when it changed in between.
//
// A pin also makes the entry give way to a new SYN from its client once it is CLOSE (the test of CLOSE_INIT in
// nf_conntrack_tcp_packet), or a reset by the rule would block the client's port until the pin expires.
//
// The kernel sets the timeout first and the status second (ctnetlink_change_conntrack). A packet that another CPU is
// handling at that moment can still refresh the timeout, and then that is what stays for good: with a packet every 20
// us in both directions about 1 pin in 130 had the wrong timeout. Again tells.
func (t *Table) Pin(e *Entry, seconds uint32) error {
	for try := 0; ; try++ {
		now, err := t.Again(e)
		if err != nil {
			return err
		}
		if now.Status&StatusFixedTimeout != 0 {
			return nil
		}
		req := about(newEntry, now.Orig, now.Zone)
		req = nl.AppendUint32(req, ctaTimeout, seconds)
		req = nl.AppendUint32(req, ctaStatus, now.Status|StatusFixedTimeout)
		req = appendTCP(req, &Entry{OrigFlags: tcpCloseInit})
		err = gone(t.conn.Execute(req))
		if errors.Is(err, unix.EBUSY) && try < 3 {
			continue
		}
		if err != nil {
			return fmt.Errorf("pin %s: %w", e.Orig, err)
		}
		return nil
	}
}

// MarkClosed tells conntrack that both ends of the flow have closed. A pinned entry goes on answering packets that
// were still on their way, and a new SYN makes the kernel replace it (TCP_CONNTRACK_SYN_SENT in
// nf_conntrack_tcp_packet), so the client may use its port again at once.
func (t *Table) MarkClosed(e *Entry) error {
	if _, err := t.Again(e); err != nil {
		return err
	}
	if err := t.setTCP(e, &Entry{State: StateClose, OrigFlags: tcpCloseInit, ReplyFlags: tcpCloseInit}); err != nil {
		return err
	}
	return t.undoClosed(e)
}

// undoClosed looks whether the right flow was closed. The entry of a closed flow gives way to a SYN at any moment, also
// between the look before a change and the change: then the new flow goes on as an open one.
func (t *Table) undoClosed(e *Entry) error {
	now, err := t.Again(e)
	if err == nil || now.ID == 0 || now.State != StateClose {
		return err
	}
	return errors.Join(err, t.setTCP(&now, &Entry{State: StateEstablished}))
}

func (t *Table) setTCP(e, to *Entry) error {
	if err := t.conn.Execute(appendTCP(about(newEntry, e.Orig, e.Zone), to)); err != nil {
		return fmt.Errorf("set state of %s: %w", e.Orig, gone(err))
	}
	return nil
}

// Assure makes an entry of a flow that has been seen in both directions as lasting as one whose handshake was seen
// (early_drop of nf_conntrack_core.c takes the others when the table is full).
func (t *Table) Assure(e *Entry) error {
	now, err := t.Again(e)
	if err != nil {
		return err
	}
	req := nl.AppendUint32(about(newEntry, now.Orig, now.Zone), ctaStatus, now.Status|StatusAssured)
	if err := t.conn.Execute(req); err != nil {
		return fmt.Errorf("assure %s: %w", e.Orig, gone(err))
	}
	return nil
}

// Relabel sets the label bits that are in mask to what they are in value. An entry that was born before labels were in
// use has no room for one (ENOSPC of nf_connlabels_replace): it stays as it is.
func (t *Table) Relabel(e *Entry, value, mask Label) error {
	value = value.And(mask) // the kernel would flip the others (replace_u32 in nf_conntrack_labels.c)
	req := about(newEntry, e.Orig, e.Zone)
	req = appendBytes(req, ctaLabels, value[:])
	req = appendBytes(req, ctaLabelsMask, mask[:])
	if err := t.conn.Execute(req); err != nil && !errors.Is(err, unix.ENOSPC) {
		return ignoreGone(fmt.Errorf("relabel %s: %w", e.Orig, gone(err)))
	}
	return nil
}

// Delete deletes the entry. An entry that is gone already is no error. Before Linux 6.4 an entry in a flowtable can't be
// deleted (EBUSY of ctnetlink_del_conntrack).
func (t *Table) Delete(e *Entry) error {
	if _, err := t.Again(e); err != nil {
		return ignoreGone(err)
	}
	if err := t.conn.Execute(deletion(e)); err != nil {
		return ignoreGone(fmt.Errorf("delete %s: %w", e.Orig, gone(err)))
	}
	return nil
}

// deletion is the one request for which the kernel compares the id (ctnetlink_del_conntrack).
func deletion(e *Entry) []byte {
	return nl.AppendUint32(about(deleteEntry, e.Orig, e.Zone), ctaID, e.ID)
}
