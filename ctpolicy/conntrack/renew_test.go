package conntrack

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func unpin(seconds uint32) func(*Entry) {
	return func(e *Entry) {
		e.Status &^= StatusFixedTimeout
		e.Timeout = seconds
	}
}

func pin(seconds uint32) func(*Entry) {
	return func(e *Entry) {
		e.Status |= StatusFixedTimeout
		e.Timeout = seconds
	}
}

func (b *bed) renew(e *Entry, change func(*Entry)) Entry {
	b.t.Helper()
	made, err := b.Renew(e, change)
	b.must(err)
	return made
}

const markRules = `table inet t { chain out { type filter hook output priority mangle; ct mark set 0xc0ffee ct label set 5 ct label set 126; }; }`

// otherLabel takes the rules away. New entries have room for labels only while a rule has to do with labels.
const otherLabel = `flush chain inet t out; add rule inet t out ct label 99 accept`

func TestRenewToUnpinned(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, markRules)
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.nft(otherLabel)
		b.must(b.Pin(&e, 100))
		b.settle(&e)
		made := b.renew(&e, unpin(50))
		if made.Timeout > 50 || made.Timeout < 48 || made.Start <= e.Start || made.Same(&e) {
			t.Errorf("%s: was %+v, is %+v", addr, e, made)
		}
		want := e
		want.ID, want.Start = made.ID, made.Start
		want.OrigFlags = tcpWindowScale | tcpSACK | tcpCloseInit | FlagLiberal
		want.ReplyFlags = tcpWindowScale | tcpSACK | FlagLiberal
		if unlike(made, want) || made.OrigScale == 0 || made.ReplyScale == 0 || made.Mark != 0xc0ffee || !made.HasLabel(5) {
			t.Errorf("%s: is %+v, want %+v", addr, made, want)
		}
		b.talk(client, peer)
		if now := b.again(&made); now.Timeout < fresh || now.State != StateEstablished {
			t.Errorf("%s: packets don't refresh it: %+v", addr, now)
		}
	}
}

func TestRenewToPinned(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.settle(&e)
		made := b.renew(&e, pin(100))
		for _, e := range []Entry{made, b.renew(&made, pin(70))} {
			if e.Status&StatusFixedTimeout == 0 || e.OrigFlags&tcpCloseInit == 0 || e.ReplyFlags&tcpCloseInit != 0 {
				t.Errorf("%s: %+v", addr, e)
			}
			made = e
		}
		client.Busy(time.Millisecond)
		peer.Busy(time.Millisecond)
		received := peer.Received()
		b.eventually("more data arrives", func() bool { return peer.Received() > received+10 })
		if now := b.again(&made); now.Timeout > 70 || now.Timeout < 65 || now.State != StateEstablished {
			t.Errorf("%s: %+v", addr, now)
		}
	}
}

// A new SYN takes the place of a renewed and pinned entry whose flow was reset.
func TestRenewedPinGivesWay(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(5000)
		e := b.entry(client, 0)
		b.settle(&e)
		made := b.renew(&e, pin(100))
		b.must(peer.Reset())
		b.must(client.WaitEnd(5 * time.Second))
		if now := b.again(&made); now.State != StateClose {
			t.Errorf("%s: %s after a reset", addr, StateName(now.State))
		}
		client, peer = b.connect(5000)
		b.talk(client, peer)
		if next := b.entry(client, 0); next.Same(&made) || next.Status&StatusFixedTimeout != 0 {
			t.Errorf("%s: was %+v, is %+v", addr, made, next)
		}
	}
}

// Conntrack believes a reset, right after Renew and when the flow has talked since.
func TestResetAfterRenew(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		untold := 0
		for i := range 12 { // with one wrong flag it believes those in one half of all numbers
			client, peer := b.connect(0)
			e := b.entry(client, 0)
			b.settle(&e)
			made := b.renew(&e, unpin(100))
			if i > 1 {
				b.talk(client, peer)
				if !b.settles(&made) {
					untold++ // with some numbers a renewed entry never tells
					continue
				}
			}
			b.must(client.Reset())
			b.must(peer.WaitEnd(5 * time.Second))
			if now := b.again(&made); now.State != StateClose {
				t.Errorf("%s: %+v", addr, now)
			}
		}
		if untold > 3 {
			t.Errorf("%s: %d of 10 renewed entries don't tell whether all is acknowledged", addr, untold)
		}
	}
}

func TestRenewLabels(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		early, _ := b.connect(0) // before there was room for labels
		b.nft(markRules)
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.nft(otherLabel)
		var want Label
		want.Set(5)
		want.Set(100)
		made := b.renew(&e, func(e *Entry) { e.Label = want })
		if made.Label != want {
			t.Errorf("%s: label %x, want %x", addr, made.Label, want)
		}
		made = b.renew(&made, func(e *Entry) { e.Label, e.Mark = Label{}, 7 })
		if made.Label != (Label{}) || made.Mark != 7 {
			t.Errorf("%s: cleared: label %x, mark %d", addr, made.Label, made.Mark)
		}
		b.talk(client, peer)
		old := b.entry(early, 0)
		if made := b.renew(&old, func(e *Entry) { e.Label = want }); made.Label != want {
			t.Errorf("%s: the new entry has no room: %x", addr, made.Label)
		}
	}
}

// Conntrack picked the connection up at a packet of the server, and has it the wrong way round.
func TestRenewReversed(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		lost := b.entry(client, 0)
		b.settle(&lost)
		b.flush()
		b.talk(client, peer)
		wrong := b.entry(client, 0)
		if wrong.Orig != origOf(client).reverse() {
			t.Fatalf("%s: not the wrong way round: %+v", addr, wrong)
		}
		b.settle(&wrong)
		right := b.renew(&wrong, func(e *Entry) { e.Reverse(); e.Timeout = 50 })
		if right.Orig != origOf(client) || right.Reply != wrong.Orig || right.Status&statusOpen != statusOpen {
			t.Errorf("%s: %+v", addr, right)
		}
		b.nft("add rule inet strict in ct direction reply tcp dport 81 drop; add rule inet strict in ct state new drop")
		b.talk(client, peer)
		if now := b.again(&right); now.Timeout < fresh || len(entries(t, openDumper(t, b.h), Filter{})) != 1 {
			t.Errorf("%s: %+v", addr, now)
		}
	}
}

// Somebody has the tuple that the new entry is to have.
func TestRenewTakenTuple(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		other, otherPeer := b.connect(0)
		e, taken := b.entry(client, 0), b.entry(other, 0)
		_, err := b.Renew(&e, func(e *Entry) { e.Orig, e.Reply = taken.Orig, taken.Reply })
		if !errors.Is(err, unix.EEXIST) || errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", addr, err)
		}
		if _, err := b.Again(&e); !errors.Is(err, ErrGone) {
			t.Errorf("%s: the old entry: %v", addr, err)
		}
		if now := b.again(&taken); unlike(now, taken) {
			t.Errorf("%s: was %+v, is %+v", addr, taken, now)
		}
		b.talk(client, peer)
		b.talk(other, otherPeer)
	}
}

// The flow ended right before its entry was to be deleted: nothing may be made in its place.
func TestRenewOfAnEndedFlow(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, _ := b.connect(0)
		e := b.entry(client, 0)
		_, err := b.Renew(&e, func(*Entry) { b.flush() })
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", addr, err)
		}
		if left := entries(t, openDumper(t, b.h), Filter{}); len(left) != 0 {
			t.Errorf("%s: %+v", addr, left)
		}
	}
}

// As it is for a flow in a flowtable: only the state and the timeout are known.
func TestRenewWithoutTCPInfo(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.settle(&e)
		made := b.renew(&e, func(e *Entry) {
			*e = Entry{Orig: e.Orig, Reply: e.Reply, Status: StatusOffload | statusOpen, State: StateEstablished, Timeout: 50}
		})
		if made.State != StateEstablished || made.Status&StatusOffload != 0 {
			t.Errorf("%s: %+v", addr, made)
		}
		b.talk(client, peer)
		if now := b.again(&made); now.Timeout < fresh || now.State != StateEstablished {
			t.Errorf("%s: %+v", addr, now)
		}
	}
}

func TestRenewRefusesHelpers(t *testing.T) {
	const rules = `
table inet t {
	ct helper ftp { type "ftp" protocol tcp; l3proto inet; }
	chain out { type filter hook output priority 0; tcp dport 81 ct helper set "ftp"; }
}`
	for _, addr := range bothFamilies {
		b := newBed(t, addr, rules)
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		if e.Status&StatusHelper == 0 {
			t.Fatalf("%s: no helper: %+v", addr, e)
		}
		_, err := b.Renew(&e, func(*Entry) { t.Errorf("%s: to be changed", addr) })
		if !errors.Is(err, ErrHelper) {
			t.Errorf("%s: %v", addr, err)
		}
		if now := b.again(&e); unlike(now, e) {
			t.Errorf("%s: was %+v, is %+v", addr, e, now)
		}
		b.talk(client, peer)
	}
}

func TestReverse(t *testing.T) {
	there, back := addrs("10.0.0.1:1", "10.0.0.2:2"), addrs("10.0.0.3:3", "10.0.0.4:4")
	e := Entry{Orig: there, Reply: back, Zone: 7, OrigFlags: 1, ReplyFlags: 2, OrigScale: 3, ReplyScale: 4, Mark: 5}
	e.Reverse()
	if want := (Entry{Orig: back, Reply: there, ReplyZone: 7, OrigFlags: 2, ReplyFlags: 1, OrigScale: 4, ReplyScale: 3, Mark: 5}); e != want {
		t.Errorf("got %+v, want %+v", e, want)
	}
}

// A flow in a flowtable comes without flags.
func TestFlags(t *testing.T) {
	for _, c := range []struct{ e, want Entry }{
		{Entry{Status: StatusOffload}, Entry{OrigFlags: 0x08, ReplyFlags: 0x08}},
		{Entry{Status: StatusFixedTimeout}, Entry{OrigFlags: 0x0c, ReplyFlags: 0x08}},
		{Entry{OrigFlags: 0xff, ReplyFlags: 0xff}, Entry{OrigFlags: 0x0f, ReplyFlags: 0x0f}},
		{Entry{OrigFlags: 0x03, ReplyFlags: 0x01}, Entry{OrigFlags: 0x0b, ReplyFlags: 0x09}},
	} {
		got := c.e
		setFlags(&got)
		if got.OrigFlags != c.want.OrigFlags || got.ReplyFlags != c.want.ReplyFlags {
			t.Errorf("%+v: got %+v", c.e, got)
		}
	}
}

// A creation that is read back says what it was to say.
func TestCreationDecodes(t *testing.T) {
	label := Label(slices.Repeat([]byte{0xa5}, 16))
	base := Entry{
		Orig: addrs("10.0.0.1:40000", "10.0.0.2:389"), Reply: addrs("10.0.0.2:389", "10.0.0.1:40000"),
		Status: statusOpen, Timeout: 50, State: StateEstablished, OrigFlags: 0x0b, ReplyFlags: 0x0b, OrigScale: 7, ReplyScale: 9,
		Label: label, Mark: 7,
	}
	for name, change := range map[string]func(*Entry){
		"plain":      func(*Entry) {},
		"pinned":     func(e *Entry) { e.Status |= StatusFixedTimeout },
		"zone":       func(e *Entry) { e.Zone, e.ReplyZone = 7, 7 },
		"orig zone":  func(e *Entry) { e.Zone = 7 },
		"reply zone": func(e *Entry) { e.ReplyZone = 7 },
		"no label":   func(e *Entry) { e.Label = Label{} },
		"no scales":  func(e *Entry) { e.ReplyFlags, e.OrigScale, e.ReplyScale = 0x08, 0, 0 },
		"offloaded":  func(e *Entry) { e.OrigFlags, e.ReplyFlags, e.OrigScale, e.ReplyScale = 0x08, 0x08, 0, 0 },
		"ipv6": func(e *Entry) {
			e.Orig, e.Reply = addrs("[fd00::1]:4", "[fd00::2]:5"), addrs("[fd00::2]:5", "[fd00::1]:4")
		},
	} {
		want := base
		change(&want)
		sent := want
		sent.Status |= StatusOffload | StatusDying // not ours to set
		var got Entry
		if ok, err := decode(creation(&sent)[unix.NLMSG_HDRLEN:], &got); !ok || err != nil || got != want {
			t.Errorf("%s: got %+v, %v, %v; want %+v", name, got, ok, err, want)
		}
	}
}
