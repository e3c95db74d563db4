package conntrack

import (
	"errors"
	"testing"
)

// Rules that put the flows of port 82 into zone 7, and those of 83 and 85 into zone 8 in one direction only.
const zoneRules = `
table inet t {
	chain zones {
		type filter hook output priority raw
		tcp dport 82 ct zone set 7
		tcp sport 82 ct zone set 7
		tcp dport 83 ct original zone set 8
		tcp sport 83 ct original zone set 8
		tcp dport 85 ct reply zone set 8
		tcp sport 85 ct reply zone set 8
	}
	chain labels {
		type filter hook output priority mangle
		ct label set 127
	}
}`

var zoneCases = []struct {
	addr        string
	orig, reply uint16
}{
	{"127.0.0.1:82", 7, 7},
	{"[::1]:82", 7, 7},
	{"127.0.0.1:83", 8, 0},
	{"[::1]:83", 8, 0},
	{"127.0.0.1:85", 0, 8},
	{"[::1]:85", 0, 8},
}

// Every call carries the zone: the same tuple in another one is nobody's.
func TestZones(t *testing.T) {
	for _, c := range zoneCases {
		b := newBed(t, c.addr, zoneRules)
		client, peer := b.connect(0)
		e := b.entry(client, c.orig)
		dumped := entries(t, openDumper(t, b.h), Filter{})[e.Orig]
		if e.Zone != c.orig || e.ReplyZone != c.reply || unlike(e, dumped) || !e.Same(&dumped) {
			t.Fatalf("%s: got %+v, dumped %+v", c.addr, e, dumped)
		}
		if byReply, err := b.Get(e.Reply, c.reply); err != nil || unlike(e, byReply) {
			t.Errorf("%s: by its reply tuple %+v, %v", c.addr, byReply, err)
		}
		b.nowhere(&e)
		b.must(b.Pin(&e, 100))
		b.must(b.Relabel(&e, Label{}, Bits(127)))
		now := b.again(&e)
		if now.Status&StatusFixedTimeout == 0 || now.HasLabel(127) {
			t.Errorf("%s: %+v", c.addr, now)
		}
		b.talk(client, peer)
		b.settle(&e)
		b.must(b.MarkClosed(&e))
		if now := b.again(&e); now.State != StateClose {
			t.Errorf("%s: %+v", c.addr, now)
		}
		b.must(b.Delete(&e))
		if _, err := b.Get(e.Orig, c.orig); !errors.Is(err, ErrGone) {
			t.Errorf("%s: after delete: %v", c.addr, err)
		}
	}
}

// nowhere looks for the entry's tuples in zones that they are not in.
func (b *bed) nowhere(e *Entry) {
	b.t.Helper()
	for _, zone := range []uint16{0, 7, 8, 9} {
		if _, err := b.Get(e.Orig, zone); zone != e.Zone && !errors.Is(err, ErrGone) {
			b.t.Errorf("%s in zone %d: %v", e.Orig, zone, err)
		}
		if _, err := b.Get(e.Reply, zone); zone != e.ReplyZone && !errors.Is(err, ErrGone) {
			b.t.Errorf("%s in zone %d: %v", e.Reply, zone, err)
		}
	}
}

func TestRenewKeepsTheZone(t *testing.T) {
	for _, c := range zoneCases {
		b := newBed(t, c.addr, zoneRules)
		client, peer := b.connect(0)
		e := b.entry(client, c.orig)
		b.must(b.Pin(&e, 100))
		b.settle(&e)
		made, err := b.Renew(&e, unpin(50))
		b.must(err)
		if made.Zone != c.orig || made.ReplyZone != c.reply || made.Status&StatusFixedTimeout != 0 {
			t.Errorf("%s: %+v", c.addr, made)
		}
		b.nowhere(&made)
		b.talk(client, peer)
		if now := b.again(&made); now.Timeout < fresh || len(entries(t, openDumper(t, b.h), Filter{})) != 1 {
			t.Errorf("%s: %+v", c.addr, now)
		}
	}
}
