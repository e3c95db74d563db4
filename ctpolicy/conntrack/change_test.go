package conntrack

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

// What conntrack doesn't understand is dropped, so a connection works only while its entry is right.
const strictRules = `
table inet strict {
	chain in {
		type filter hook input priority 0
		ct state invalid drop
	}
}
`

// A bed is a host with a server and an open Table.
type bed struct {
	*Table
	t      *testing.T
	h      *netnstest.Host
	server *netnstest.Server
}

func newBed(t *testing.T, addr, rules string) *bed {
	t.Helper()
	b := &bed{t: t, h: netnstest.NewHost(t, "a")}
	b.nft(strictRules + rules)
	if err := b.h.SetSysctl("net.netfilter.nf_conntrack_timestamp", "1"); err != nil {
		t.Fatal(err)
	}
	b.server = b.h.Listen(t, "tcp", addr)
	if err := b.h.Do(func() (err error) { b.Table, err = OpenTable(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bed) nft(rules string) {
	b.t.Helper()
	if _, err := b.h.Pipe(b.t.Context(), rules, "nft", "-f", "-"); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) flush() {
	b.t.Helper()
	if err := b.h.Run(b.t.Context(), "conntrack", "-F"); err != nil {
		b.t.Fatal(err)
	}
}

// connect opens a connection; with port 0 from a free one.
func (b *bed) connect(port uint16) (client, peer *netnstest.Conn) {
	b.t.Helper()
	opts := netnstest.DialOptions{}
	if port != 0 {
		opts = netnstest.FromPort(port)
	}
	client = b.h.Dial(b.t, "tcp", b.server.Addr().String(), opts)
	peer = b.server.Conn(b.t, client)
	b.talk(client, peer)
	return client, peer
}

// talk sends more than a window in both directions, the server's end first.
func (b *bed) talk(client, peer *netnstest.Conn) {
	b.t.Helper()
	data := bytes.Repeat([]byte{'x'}, 300_000)
	for _, c := range []struct{ from, to *netnstest.Conn }{{peer, client}, {client, peer}} {
		want := c.to.Received() + int64(len(data))
		if _, err := c.from.Write(data); err != nil {
			b.t.Fatal(err)
		}
		b.eventually("data arrives", func() bool { return c.to.Received() == want })
	}
}

func (b *bed) eventually(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// entry is the client's entry, which must be there.
func (b *bed) entry(client *netnstest.Conn, zone uint16) Entry {
	b.t.Helper()
	e, err := b.Get(origOf(client), zone)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func (b *bed) again(e *Entry) Entry {
	b.t.Helper()
	now, err := b.Again(e)
	if err != nil {
		b.t.Fatal(err)
	}
	return now
}

// settle waits until no packet of the connection is on its way.
func (b *bed) settle(e *Entry) {
	b.t.Helper()
	b.eventually("all is acknowledged", func() bool {
		now := b.again(e)
		return (now.OrigFlags|now.ReplyFlags)&unacknowledged == 0
	})
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// unacknowledged is IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED: data is on its way.
const unacknowledged = 0x10

// unlike compares two readings of an entry, without what every packet changes.
func unlike(a, b Entry) bool {
	for _, e := range []*Entry{&a, &b} {
		e.Timeout = 0
		e.OrigFlags &^= unacknowledged
		e.ReplyFlags &^= unacknowledged
	}
	return a != b
}

// fresh is below what the kernel gives an open connection by default, with (300 s) or without data on its way.
const fresh = 290

var bothFamilies = []string{"127.0.0.1:81", "[::1]:81"}

func TestGet(t *testing.T) {
	const rules = `table inet t { chain out { type filter hook output priority mangle; ct mark set 0xc0ffee ct label set 5; }; }`
	for _, addr := range bothFamilies {
		b := newBed(t, addr, rules)
		client, _ := b.connect(0)
		byOrig := b.entry(client, 0)
		byReply, err := b.Get(byOrig.Reply, 0)
		if err != nil || unlike(byOrig, byReply) {
			t.Errorf("%s: %+v by original, %+v, %v by reply tuple", addr, byOrig, byReply, err)
		}
		dumped := entries(t, openDumper(t, b.h), Filter{})[origOf(client)]
		if unlike(byOrig, dumped) || !byOrig.Same(&dumped) || byOrig.Timeout < fresh {
			t.Errorf("%s: got %+v, dumped %+v", addr, byOrig, dumped)
		}
		other := origOf(client)
		other.Src = other.Dst
		if _, err := b.Get(other, 0); !errors.Is(err, ErrGone) {
			t.Errorf("%s: a tuple without an entry: %v", addr, err)
		}
	}
}

// Two connections that use the same addresses and ports one after the other: nothing that is done to the first may
// hit the second.
func TestReusedTuple(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(5000)
		first := b.entry(client, 0)
		b.must(client.Reset())
		b.must(peer.WaitEnd(5 * time.Second))
		b.flush()
		gone := func(when string) {
			t.Helper()
			_, err := b.Again(&first)
			for what, err := range map[string]error{
				"again": err, "pin": b.Pin(&first, 100), "mark closed": b.MarkClosed(&first), "mark waiting": b.MarkWaiting(&first),
			} {
				if !errors.Is(err, ErrGone) {
					t.Errorf("%s, %s: %s: %v", addr, when, what, err)
				}
			}
			b.must(b.Delete(&first))
			b.must(b.Release(&first, 100))
		}
		gone("no entry")
		if left := entries(t, openDumper(t, b.h), Filter{}); len(left) != 0 {
			t.Errorf("%s: %v", addr, left)
		}

		client, peer = b.connect(5000)
		second := b.entry(client, 0)
		if second.Orig != first.Orig || second.Same(&first) {
			t.Fatalf("%s: %+v, then %+v", addr, first, second)
		}
		gone("another entry")
		if now := b.again(&second); unlike(now, second) {
			t.Errorf("%s: was %+v, is %+v", addr, second, now)
		}
		b.talk(client, peer)
	}
}

func TestPin(t *testing.T) {
	const seconds = 100
	var beds []*bed
	var pins []Entry
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		client.Busy(5 * time.Millisecond)
		peer.Busy(5 * time.Millisecond)
		before := b.entry(client, 0)
		b.must(b.Pin(&before, seconds))
		pinned := b.again(&before)
		want := before
		want.Status |= StatusFixedTimeout
		want.OrigFlags |= tcpCloseInit
		if unlike(pinned, want) {
			t.Errorf("%s: was %+v, is %+v", addr, before, pinned)
		}
		if pinned.Timeout > seconds || pinned.Timeout < seconds-2 {
			t.Errorf("%s: timeout %d", addr, pinned.Timeout)
		}
		b.must(b.Pin(&before, 5000)) // pinned is pinned
		b.must(b.Pin(&pinned, 5))
		beds, pins = append(beds, b), append(pins, pinned)
	}
	for i, b := range beds {
		conn := b.server.Conns()[0]
		b.eventually("the timeout counts down", func() bool { return b.again(&pins[i]).Timeout < seconds-2 })
		received := conn.Received()
		b.eventually("more data arrives", func() bool { return conn.Received() > received+2 })
		if now := b.again(&pins[i]); unlike(now, pins[i]) || now.Timeout >= seconds-2 || now.Timeout < seconds-20 {
			t.Errorf("was %+v, is %+v", pins[i], now)
		}
	}
}

// A connection that conntrack has lost, and whose server talks first: without Create the entry would be the wrong way
// round.
func TestCreate(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		lost := b.entry(client, 0)
		b.settle(&lost)
		before := time.Now()
		b.flush()
		if _, err := b.Get(origOf(client), 0); !errors.Is(err, ErrGone) {
			t.Fatalf("%s: after a flush: %v", addr, err)
		}
		b.must(b.Create(origOf(client), 100))
		made := b.entry(client, 0)
		if made.Orig != origOf(client) || made.Reply != (Tuple{made.Orig.Dst, made.Orig.Src}) {
			t.Errorf("%s: %v, reply %v", addr, made.Orig, made.Reply)
		}
		const done = StatusSrcNATDone | StatusDstNATDone
		if made.Status&^done != StatusAssured|StatusSeenReply|StatusConfirmed || made.State != StateEstablished {
			t.Errorf("%s: status %#x, %s", addr, made.Status, StateName(made.State))
		}
		if made.Timeout > 100 || made.Timeout < 98 || time.Unix(0, made.Start).Before(before) {
			t.Errorf("%s: timeout %d, born at %v", addr, made.Timeout, time.Unix(0, made.Start))
		}
		if err := b.Create(origOf(client), 100); !errors.Is(err, unix.EEXIST) {
			t.Errorf("%s: created twice: %v", addr, err)
		}
		b.talk(client, peer)
		if now := b.again(&made); now.State != StateEstablished || now.Timeout < fresh {
			t.Errorf("%s: after some data %s, timeout %d", addr, StateName(now.State), now.Timeout)
		}
		b.must(b.Pin(&made, 100))
		if n := len(entries(t, openDumper(t, b.h), Filter{})); n != 1 {
			t.Errorf("%s: %d entries, want 1", addr, n)
		}
	}
}

// The ends close and conntrack does not see it, as when a socket is destroyed in a full queue. The pinned entry must
// not take in the client's next connection from the same port.
func TestMarkClosed(t *testing.T) {
	const rules = `table inet t { chain out { type filter hook output priority raw; tcp flags & rst == rst notrack; }; }`
	for _, addr := range bothFamilies {
		b := newBed(t, addr, rules)
		client, peer := b.connect(5000)
		e := b.entry(client, 0)
		b.must(b.Pin(&e, 100))
		b.must(client.Reset())
		b.must(peer.WaitEnd(5 * time.Second))
		if now := b.again(&e); now.State != StateEstablished {
			t.Fatalf("%s: conntrack has seen the reset: %+v", addr, now)
		}
		b.must(b.MarkClosed(&e))
		now := b.again(&e)
		if now.State != StateClose || now.Status&StatusFixedTimeout == 0 || now.Timeout > 100 || now.Timeout < 90 {
			t.Errorf("%s: %+v", addr, now)
		}

		client, peer = b.connect(5000)
		next := b.entry(client, 0)
		if next.Orig != e.Orig || next.Same(&e) || next.Status&StatusFixedTimeout != 0 {
			t.Errorf("%s: was %+v, is %+v", addr, e, next)
		}
		b.talk(client, peer)
	}
}

// One end has been reset, and conntrack goes on with the other as if nothing had happened, window scales included.
func TestMarkWaiting(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.must(b.Pin(&e, 100))
		origScale, replyScale := b.windowScales(e.Orig)
		if origScale == 0 || replyScale == 0 {
			t.Fatalf("%s: no window scaling", addr)
		}
		pinned := b.again(&e)
		b.must(b.MarkClosed(&e))
		b.must(b.MarkWaiting(&e))
		now := b.again(&e)
		if now.State != StateTimeWait || now.Status != pinned.Status || now.Timeout > 100 {
			t.Errorf("%s: was %+v, is %+v", addr, pinned, now)
		}
		if o, r := b.windowScales(e.Orig); o != origScale || r != replyScale {
			t.Errorf("%s: window scales %d and %d, were %d and %d", addr, o, r, origScale, replyScale)
		}
		b.talk(client, peer)
		b.settle(&e) // a reset ahead of the last acknowledgement would leave the entry open (nf_conntrack_tcp_packet)
		b.must(client.Reset())
		b.must(peer.WaitEnd(5 * time.Second))
		if now := b.again(&e); now.State != StateClose {
			t.Errorf("%s: %s after a reset", addr, StateName(now.State))
		}
	}
}

func (b *bed) windowScales(tuple Tuple) (orig, reply uint8) {
	b.t.Helper()
	flow, err := b.get(tuple, 0)
	b.must(err)
	return flow.ProtoInfo.TCP.OriginalWindowScale, flow.ProtoInfo.TCP.ReplyWindowScale
}

func TestDelete(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.must(b.Pin(&e, 100))
		for range 2 {
			b.must(b.Delete(&e))
			if _, err := b.Again(&e); !errors.Is(err, ErrGone) {
				t.Fatalf("%s: %v", addr, err)
			}
		}
		// Conntrack picks the connection up as one in mid-flow.
		b.talk(client, peer)
	}
}

func TestRelease(t *testing.T) {
	const rules = `table inet t { chain out { type filter hook output priority mangle; ct mark set 0xc0ffee; }; }`
	for _, addr := range bothFamilies {
		b := newBed(t, addr, rules)
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.must(b.Pin(&e, 100))
		b.settle(&e)
		b.must(b.Release(&e, 50))
		now := b.entry(client, 0)
		if now.Orig != e.Orig || now.Status&StatusFixedTimeout != 0 || now.Status&StatusAssured == 0 {
			t.Errorf("%s: %+v", addr, now)
		}
		if now.State != e.State || now.Mark != e.Mark || now.Timeout > 50 || now.Timeout < 48 {
			t.Errorf("%s: was %+v, is %+v", addr, e, now)
		}
		b.talk(client, peer)
		if now := b.again(&now); now.Timeout < fresh || now.State != StateEstablished {
			t.Errorf("%s: packets don't refresh it: %+v", addr, now)
		}
	}
}

// An entry that is made anew would lose its translation, so it stays.
func TestReleaseRefusesNAT(t *testing.T) {
	const rules = `table ip nat { chain out { type nat hook output priority -100; tcp dport 84 redirect to :81; }; }`
	b := newBed(t, "127.0.0.1:81", rules)
	client := dial(t, b.h, "127.0.0.1:84")
	e := b.entry(client, 0)
	b.must(b.Pin(&e, 100))
	if err := b.Release(&e, 50); !errors.Is(err, ErrNAT) {
		t.Errorf("got %v", err)
	}
	if now := b.again(&e); now.Reply.Src.Port() != 81 || now.Status&StatusFixedTimeout == 0 {
		t.Errorf("%+v", now)
	}
	b.talk(client, b.server.Next(t))
}

func TestClearLabels(t *testing.T) {
	const rules = `table inet t { chain out { type filter hook output priority mangle; ct label set 126 ct label set 127 ct label set 5; }; }`
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		old, _ := b.connect(0)
		b.nft(rules)
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.nft("flush table inet t")
		for _, c := range []struct{ clear, left []int }{
			{nil, []int{5, 126, 127}},
			{[]int{4}, []int{5, 126, 127}},
			{[]int{126, 127}, []int{5}},
			{[]int{126, 127}, []int{5}},
			{[]int{5, 0}, nil},
		} {
			b.must(b.ClearLabels(&e, c.clear...))
			now := b.again(&e)
			var left []int
			for bit := range 128 {
				if now.HasLabel(bit) {
					left = append(left, bit)
				}
			}
			if !slices.Equal(left, c.left) {
				t.Errorf("%s: cleared %v: %v are left, want %v", addr, c.clear, left, c.left)
			}
			now.Label = e.Label
			if unlike(now, e) {
				t.Errorf("%s: was %+v, is %+v", addr, e, now)
			}
		}
		b.talk(client, peer)

		// No room for labels, and no entry: nothing to clear.
		unlabelled := b.entry(old, 0)
		b.must(b.ClearLabels(&unlabelled, 126))
		b.flush()
		b.must(b.ClearLabels(&e, 126))
	}
}

// Every call carries the zone: the same tuple without it is nobody's.
func TestZones(t *testing.T) {
	const rules = `
table inet t {
	chain zones {
		type filter hook output priority raw
		tcp dport 82 ct zone set 7
		tcp sport 82 ct zone set 7
		tcp dport 83 ct original zone set 8
	}
	chain labels {
		type filter hook output priority mangle
		ct label set 127
	}
}`
	for addr, zone := range map[string]uint16{"127.0.0.1:82": 7, "[::1]:82": 7, "127.0.0.1:83": 8} {
		b := newBed(t, addr, rules)
		client, peer := b.connect(0)
		e := b.entry(client, zone)
		if dumped := entries(t, openDumper(t, b.h), Filter{})[e.Orig]; e.Zone != zone || !e.Same(&dumped) {
			t.Fatalf("%s: got %+v, dumped %+v", addr, e, dumped)
		}
		if _, err := b.Get(e.Orig, 0); !errors.Is(err, ErrGone) {
			t.Errorf("%s: without its zone: %v", addr, err)
		}
		b.must(b.Pin(&e, 100))
		b.must(b.MarkClosed(&e))
		b.must(b.MarkWaiting(&e))
		b.must(b.ClearLabels(&e, 127))
		now := b.again(&e)
		if now.Status&StatusFixedTimeout == 0 || now.State != StateTimeWait || now.HasLabel(127) {
			t.Errorf("%s: %+v", addr, now)
		}
		b.talk(client, peer)
		b.settle(&e)
		b.must(b.Delete(&e))
		if _, err := b.Get(e.Orig, zone); !errors.Is(err, ErrGone) {
			t.Errorf("%s: after delete: %v", addr, err)
		}
	}
}

func TestReleaseKeepsTheZone(t *testing.T) {
	const rules = `table inet t { chain zones { type filter hook output priority raw; ct zone set 7; }; }`
	b := newBed(t, "127.0.0.1:82", rules)
	client, peer := b.connect(0)
	e := b.entry(client, 7)
	b.must(b.Pin(&e, 100))
	b.must(b.Release(&e, 50))
	now := b.entry(client, 7)
	b.talk(client, peer)
	if now := b.again(&now); now.Status&StatusFixedTimeout != 0 || len(entries(t, openDumper(t, b.h), Filter{})) != 1 {
		t.Errorf("%+v", now)
	}
}

// A SYN may replace a closed entry just before its state is set. Here it has happened already.
func TestStateOfAnotherFlow(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.must(b.MarkClosed(&e))
		before := e
		before.ID++
		if err := b.h.Do(func() error { return b.undo(&before, StateClose) }); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v, want ErrGone", addr, err)
		}
		if now := b.again(&e); now.State != StateEstablished {
			t.Errorf("%s: the new flow is %s", addr, StateName(now.State))
		}
		b.talk(client, peer)
	}
}
