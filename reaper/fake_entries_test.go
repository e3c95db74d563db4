package reaper

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// The table of entries.

func (k *kernel) find(t conntrack.Tuple) *entry { return k.findIn(t, 0) }

func (k *kernel) findIn(t conntrack.Tuple, zone uint16) *entry {
	e := k.byTuple[zoned{t, zone}]
	if e != nil && e.expires <= k.boot {
		k.remove(e)
		return nil
	}
	return e
}

func (k *kernel) remove(e *entry) {
	for _, t := range []conntrack.Tuple{e.Orig, e.Reply} {
		if z := (zoned{t, e.Zone}); k.byTuple[z] == e {
			delete(k.byTuple, z)
		}
	}
	k.entries = slices.DeleteFunc(k.entries, func(x *entry) bool { return x == e })
}

// flush is conntrack -F.
func (k *kernel) flush() {
	k.entries = nil
	clear(k.byTuple)
}

func (k *kernel) read(e *entry) conntrack.Entry {
	now := e.Entry
	now.Timeout = uint32(e.expires.Sub(k.boot) / time.Second)
	if ctpolicy.Offloaded(&now) {
		now.Timeout, now.State, now.OrigFlags, now.ReplyFlags = 0, 0, 0, 0
	}
	return now
}

// Dump copies some entries at a time, as the kernel does, so that those given out may be a little old.
func (k *kernel) Dump(f conntrack.Filter, fn func(*conntrack.Entry) error) error {
	fault := k.call("Dump")
	all := slices.Clone(k.entries)
	if fault != nil {
		all = all[:len(all)/2] // cut short
	}
	for part := range slices.Chunk(all, 100) {
		var read []conntrack.Entry
		for _, e := range part {
			if k.findIn(e.Orig, e.Zone) == e && (e.Status^f.Status)&f.StatusMask == 0 {
				read = append(read, k.read(e))
			}
		}
		for i := range read {
			if err := fn(&read[i]); err != nil {
				return err
			}
		}
	}
	return fault
}

func (k *kernel) Get(t conntrack.Tuple, zone uint16) (conntrack.Entry, error) {
	if err := k.call("Get"); err != nil {
		return conntrack.Entry{}, err
	}
	return k.get(t, zone)
}

func (k *kernel) get(t conntrack.Tuple, zone uint16) (conntrack.Entry, error) {
	e := k.findIn(t, zone)
	if e == nil {
		return conntrack.Entry{}, fmt.Errorf("get %s: %w", t, conntrack.ErrGone)
	}
	return k.read(e), nil
}

func (k *kernel) Again(e *conntrack.Entry) (conntrack.Entry, error) {
	if err := k.call("Again"); err != nil {
		return conntrack.Entry{}, err
	}
	now, err := k.get(e.Orig, e.Zone)
	if err == nil && !now.Same(e) {
		err = fmt.Errorf("get %s: %w", e.Orig, conntrack.ErrGone)
	}
	return now, err
}

// change finds the entry that a call wants to change.
func (k *kernel) change(name string, e *conntrack.Entry) (*entry, error) {
	if err := k.call(name); err != nil {
		return nil, err
	}
	now := k.findIn(e.Orig, e.Zone)
	if now == nil || !now.Same(e) {
		return nil, fmt.Errorf("%s %s: %w", name, e.Orig, conntrack.ErrGone)
	}
	turned := name == "Renew" && now.Orig == reversed(now.conn.tuple) && now.conn.policy != nil
	if k.policies.Flow(&now.Entry) == nil && name != "Delete" && !turned {
		k.tb.Errorf("%s of %s, which no policy covers", name, e.Orig)
	}
	if p := now.conn.policy; p != nil && !p.Enforced() && name != "Relabel" {
		k.tb.Errorf("%s of %s, whose policy only reports", name, e.Orig)
	}
	k.changes = append(k.changes, name)
	return now, nil
}

func (k *kernel) Pin(old *conntrack.Entry, seconds uint32) error {
	e, err := k.change("Pin", old)
	if err != nil || ctpolicy.Pinned(&e.Entry) {
		return err
	}
	if ctpolicy.Offloaded(&e.Entry) {
		k.tb.Errorf("%s is pinned in a flowtable", e.conn)
	}
	c := e.conn
	c.mayEnd = c.mayEnd || c.due()
	if k.pinRaces > 0 {
		// A packet on another CPU came between the timeout and the status.
		k.pinRaces--
		e.expires = k.boot.Add(e.base)
		e.Status |= conntrack.StatusFixedTimeout
		return nil
	}
	e.expires = k.boot.Add(time.Duration(seconds) * time.Second)
	e.Status |= conntrack.StatusFixedTimeout
	k.notEarly(e)
	return nil
}

// notEarly fails when the rule of a pinned entry starts before the time is up.
func (k *kernel) notEarly(e *entry) {
	c, starts := e.conn, e.expires.Add(-ctpolicy.Window)
	if maxAge := c.policy.AgeLimit(c.tuple) + c.policy.Grace; !c.due() && (maxAge == 0 || starts < c.born.Add(maxAge)) {
		k.tb.Errorf("%s is pinned so that the rule starts %s too early", c, c.born.Add(maxAge).Sub(starts))
	}
}

func (k *kernel) Create(t conntrack.Tuple, seconds uint32) error {
	if err := k.call("Create"); err != nil {
		return err
	}
	if k.find(t) != nil || k.find(reversed(t)) != nil {
		return fmt.Errorf("create entry %s: %w", t, unix.EEXIST)
	}
	for _, c := range k.conns {
		if c.tuple != t && c.tuple != reversed(t) || !c.open() {
			continue
		}
		if !c.policy.Enforced() {
			k.tb.Errorf("entry of %s is made, whose policy only reports", c)
		}
		if c.tuple != t {
			k.tb.Errorf("entry of %s is made the wrong way round", c)
		}
		e := k.newEntry(c, t, reversed(t))
		e.Label = conntrack.Label{}
		e.OrigFlags, e.ReplyFlags = conntrack.FlagLiberal, conntrack.FlagLiberal
		e.base = time.Duration(k.defaults[conntrack.TimeoutEstablished]) * time.Second
		e.expires = k.boot.Add(time.Duration(seconds) * time.Second)
		k.changes = append(k.changes, "Create")
		return nil
	}
	k.tb.Errorf("entry %s is made for no connection", t)
	return nil
}

func (k *kernel) Renew(old *conntrack.Entry, change func(*conntrack.Entry)) (conntrack.Entry, error) {
	e, err := k.change("Renew", old)
	if err != nil {
		return conntrack.Entry{}, err
	}
	c, anew := e.conn, k.read(e)
	held := k.held[e.Orig] > k.boot && k.held[e.Reply] > k.boot
	k.remove(e)
	if ctpolicy.Offloaded(&anew) {
		c.bypass = k.boot.Add(time.Second)
	}
	if k.between != nil {
		k.between()
	}
	change(&anew)
	if ending := ctpolicy.Pinned(&anew) && ctpolicy.PinnedDeadline(&anew, k.boot) <= k.boot.Add(time.Second); !held && !ending {
		k.tb.Errorf("the entry of %s is renewed and nothing is held", c)
	}
	if k.findIn(anew.Orig, anew.Zone) != nil || k.findIn(anew.Reply, anew.Zone) != nil {
		return conntrack.Entry{}, fmt.Errorf("renew %s: %w", anew.Orig, unix.EEXIST)
	}
	return k.read(k.renewed(c, &anew)), nil
}

// renewed has no timeout object.
func (k *kernel) renewed(c *conn, anew *conntrack.Entry) *entry {
	e := k.newEntry(c, anew.Orig, anew.Reply)
	start := e.Start
	e.Entry, e.Start = *anew, start
	e.ID++
	e.Status &^= conntrack.StatusOffload
	e.base = time.Duration(k.defaults[conntrack.TimeoutEstablished]) * time.Second
	e.expires = k.boot.Add(time.Duration(anew.Timeout) * time.Second)
	if e.State == 0 {
		k.tb.Errorf("the entry of %s is renewed without a state", c)
	}
	if ctpolicy.Pinned(&e.Entry) {
		k.notEarly(e)
	}
	return e
}

func (k *kernel) MarkClosed(old *conntrack.Entry) error {
	e, err := k.change("MarkClosed", old)
	if err != nil {
		return err
	}
	if e.conn.open() && !e.conn.due() {
		k.tb.Errorf("%s is marked closed and is open", e.conn)
	}
	e.State = conntrack.StateClose
	e.OrigFlags |= 0x04
	e.ReplyFlags |= 0x04
	return nil
}

// Relabel is no error where there is no entry, or no room.
func (k *kernel) Relabel(old *conntrack.Entry, value, mask conntrack.Label) error {
	e, err := k.change("Relabel", old)
	if err == nil && !k.noLabels {
		e.Label = e.Label.AndNot(mask).Or(value.And(mask))
	}
	if errors.Is(err, conntrack.ErrGone) {
		return nil
	}
	return err
}

func (k *kernel) Assure(old *conntrack.Entry) error {
	e, err := k.change("Assure", old)
	if err == nil {
		e.Status |= conntrack.StatusAssured
	}
	return err
}

func (k *kernel) Delete(old *conntrack.Entry) error {
	e, err := k.change("Delete", old)
	if errors.Is(err, conntrack.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	if wrongWay := e.Orig == reversed(e.conn.tuple); !wrongWay && e.conn.established() {
		k.tb.Errorf("the entry of %s is deleted, which is open", e.conn)
	}
	k.remove(e)
	return nil
}
