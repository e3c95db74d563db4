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
	b.server = b.h.Listen(t, "tcp", addr)
	b.start(strictRules + rules)
	return b
}

// start installs the rules and opens the Table.
func (b *bed) start(rules string) {
	b.t.Helper()
	b.nft(rules)
	b.must(b.h.SetSysctl("net.netfilter.nf_conntrack_timestamp", "1"))
	b.must(b.h.Do(func() (err error) { b.Table, err = OpenTable(); return err }))
	b.t.Cleanup(func() {
		if err := b.Close(); err != nil {
			b.t.Error(err)
		}
	})
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
		b.eventually("data arrives", func() bool { return c.to.Received() >= want })
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
	b.eventually("all is acknowledged", func() bool { return b.settles(e) })
}

// settles is settle for an entry that may never tell.
func (b *bed) settles(e *Entry) bool {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if now := b.again(e); (now.OrigFlags|now.ReplyFlags)&unacknowledged == 0 {
			return true
		}
	}
	return false
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
			_, renewed := b.Renew(&first, func(*Entry) { t.Errorf("%s, %s: to be changed", addr, when) })
			for what, err := range map[string]error{
				"again": err, "pin": b.Pin(&first, 100), "mark closed": b.MarkClosed(&first), "renew": renewed,
			} {
				if !errors.Is(err, ErrGone) {
					t.Errorf("%s, %s: %s: %v", addr, when, what, err)
				}
			}
			b.must(b.Delete(&first))
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
		if now.OrigFlags&now.ReplyFlags&tcpCloseInit == 0 {
			t.Errorf("%s: flags %#x and %#x", addr, now.OrigFlags, now.ReplyFlags)
		}
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

func TestDelete(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.must(b.Pin(&e, 100))
		other := e
		other.ID++
		if err := b.conn.Execute(deletion(&other)); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: the kernel deletes an entry with another id: %v", addr, err)
		}
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

func TestRelabel(t *testing.T) {
	const rules = `table inet t { chain out { type filter hook output priority mangle; ct label set 126 ct label set 127 ct label set 5; }; }`
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		old, _ := b.connect(0)
		b.nft(rules)
		client, peer := b.connect(0)
		e := b.entry(client, 0)
		b.nft("flush table inet t")
		for _, c := range []struct{ value, mask, left []int }{
			{nil, nil, []int{5, 126, 127}},
			{nil, []int{4}, []int{5, 126, 127}},
			{[]int{125, 7}, []int{125}, []int{5, 125, 126, 127}},
			{[]int{127}, []int{125, 126, 127}, []int{5, 127}},
			{nil, []int{126, 127}, []int{5}},
			{nil, []int{5, 0}, nil},
		} {
			b.must(b.Relabel(&e, Bits(c.value...), Bits(c.mask...)))
			now := b.again(&e)
			var left []int
			for bit := range 128 {
				if now.HasLabel(bit) {
					left = append(left, bit)
				}
			}
			if !slices.Equal(left, c.left) {
				t.Errorf("%s: %v of %v: %v are left, want %v", addr, c.value, c.mask, left, c.left)
			}
			now.Label = e.Label
			if unlike(now, e) {
				t.Errorf("%s: was %+v, is %+v", addr, e, now)
			}
		}
		b.talk(client, peer)

		// No room for labels, and no entry: nothing to change.
		unlabelled := b.entry(old, 0)
		b.must(b.Relabel(&unlabelled, Bits(126), Bits(126)))
		b.flush()
		b.must(b.Relabel(&e, Label{}, Bits(126)))
	}
}

// A flow that was picked up is not assured before its third packet.
func TestAssure(t *testing.T) {
	for _, addr := range bothFamilies {
		b := newBed(t, addr, "")
		client, peer := b.connect(0)
		b.flush()
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		b.eventually("both directions are seen", func() bool { return b.entry(client, 0).Status&StatusSeenReply != 0 })
		e := b.entry(client, 0)
		b.must(b.Assure(&e))
		now := b.again(&e)
		if now.Status != e.Status|StatusAssured {
			t.Errorf("%s: status was %#x, is %#x", addr, e.Status, now.Status)
		}
		b.talk(client, peer)
		b.flush()
		if err := b.Assure(&e); !errors.Is(err, ErrGone) {
			t.Errorf("%s: without an entry: %v", addr, err)
		}
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
		if err := b.h.Do(func() error { return b.undoClosed(&before) }); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v, want ErrGone", addr, err)
		}
		if now := b.again(&e); now.State != StateEstablished {
			t.Errorf("%s: the new flow is %s", addr, StateName(now.State))
		}
		b.talk(client, peer)
	}
}
