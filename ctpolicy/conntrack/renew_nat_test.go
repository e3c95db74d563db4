package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

// The gateway lets packets through only while their entry is right: none begins a flow in the middle.
const gatewayRules = `
table inet strict {
	chain forward {
		type filter hook forward priority 0; policy drop
		ct state established accept
		ct state new tcp flags & (syn | ack) == syn accept
	}
	chain input {
		type filter hook input priority 0
		meta l4proto tcp drop
	}
}
`

// natRules is for a family and what each hook does.
const natRules = `
table %s nat {
	chain pre {
		type nat hook prerouting priority -100
		%s
	}
	chain post {
		type nat hook postrouting priority 100
		%s
	}
}
`

type natCase struct {
	name       string
	dnat, snat string // rules; %s is the server and its port, or the gateway and a range of ports
	none       bool   // no nat chain at all
}

var natCases = []natCase{
	{name: "plain", none: true},
	{name: "plain among nat rules"},
	{name: "dnat", dnat: "tcp dport 81 dnat to %s"},
	{name: "snat", snat: "oifname link2 meta l4proto tcp snat to %s"},
	{name: "masquerade", snat: "oifname link2 meta l4proto tcp masquerade to :7000-7099"},
	{name: "masquerade, port kept", snat: "oifname link2 masquerade"},
	{name: "dnat and masquerade", dnat: "tcp dport 81 dnat to %s", snat: "oifname link2 meta l4proto tcp masquerade to :7000-7099"},
}

// A gate is a bed on a gateway, through which a client reaches a server.
type gate struct {
	*bed
	path *netnstest.Path
	to   string // what the client connects to
}

func newGate(t *testing.T, c natCase, v6 bool) *gate {
	t.Helper()
	p := netnstest.NewPath(t)
	family, server, near, far := "ip", p.Far.B.Addr4, p.Near.B.Addr4, p.Far.A.Addr4
	if v6 {
		family, server, near, far = "ip6", p.Far.B.Addr6, p.Near.B.Addr6, p.Far.A.Addr6
	}
	target := netip.AddrPortFrom(server, 80)
	g := &gate{bed: &bed{t: t, h: p.Gateway, server: p.Server.Listen(t, "tcp", target.String())}, path: p, to: target.String()}
	rules := gatewayRules
	if !c.none {
		dnat, snat := "", c.snat
		if c.dnat != "" {
			dnat = fmt.Sprintf(c.dnat, target)
			g.to = netip.AddrPortFrom(near, 81).String()
		}
		if c.name == "snat" {
			snat = fmt.Sprintf(c.snat, netip.AddrPortFrom(far, 7000).String()+"-7099")
		}
		rules += fmt.Sprintf(natRules, family, dnat, snat)
	}
	g.start(rules)
	return g
}

// through opens a connection through the gateway.
func (g *gate) through() (client, peer *netnstest.Conn, e Entry) {
	g.t.Helper()
	client = g.path.Client.Dial(g.t, "tcp", g.to, netnstest.DialOptions{})
	peer = g.server.Next(g.t)
	g.talk(client, peer)
	e = g.entry(client, 0)
	g.settle(&e)
	return client, peer, g.again(&e)
}

func TestRenewKeepsNAT(t *testing.T) {
	for _, c := range natCases {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, v6 %v", c.name, v6), func(t *testing.T) {
				t.Parallel()
				g := newGate(t, c, v6)
				client, peer, born := g.through()
				c.check(t, &born)
				if peer.RemoteAddr() != born.Reply.Dst || peer.LocalAddr() != born.Reply.Src {
					t.Fatalf("the server sees %s, the entry is %+v", peer, born)
				}
				g.must(g.Pin(&born, 100))
				made := g.renew(&born, unpin(50))
				g.like(&made, &born, 50)
				g.talk(client, peer)
				time.Sleep(20 * time.Millisecond) // idle
				g.talk(peer, client)
				if now := g.again(&made); now.Timeout < fresh || now.State != StateEstablished {
					t.Errorf("%+v", now)
				}
				client.Busy(time.Millisecond)
				peer.Busy(time.Millisecond)
				pinned := g.renew(&made, pin(70))
				made.Status |= StatusFixedTimeout
				g.like(&pinned, &made, 70)
				received := peer.Received()
				g.eventually("more data arrives", func() bool { return peer.Received() > received+20 })
				if now := g.again(&pinned); now.Timeout < 60 || now.Timeout > 70 {
					t.Errorf("busy: %+v", now)
				}
				again := g.renew(&pinned, func(e *Entry) { e.Status, e.Timeout = 0, 50 }) // the tuples tell of the NAT
				g.talk(client, peer)
				if now := g.again(&again); now.Timeout < fresh {
					t.Errorf("packets don't refresh it: %+v", now)
				}
				if n := len(entries(t, openDumper(t, g.h), Filter{})); n != 1 {
					t.Errorf("%d entries", n)
				}
			})
		}
	}
}

// check compares the entry's status with what the rules are to do.
func (c *natCase) check(t *testing.T, e *Entry) {
	t.Helper()
	want := uint32(0)
	if c.dnat != "" {
		want |= StatusDstNAT
	}
	if c.snat != "" {
		want |= StatusSrcNAT
	}
	if !c.none {
		want |= StatusDstNATDone | StatusSrcNATDone
	}
	if e.Status&^statusOpen != want {
		t.Fatalf("status %#x, want NAT bits %#x", e.Status, want)
	}
}

// like compares a new entry with the one that it replaces.
func (b *bed) like(made, old *Entry, seconds uint32) {
	b.t.Helper()
	if made.Orig != old.Orig || made.Reply != old.Reply || made.Status != old.Status {
		b.t.Errorf("was %+v, is %+v", *old, *made)
	}
	if made.Timeout > seconds || made.Timeout+2 < seconds || made.State != StateEstablished {
		b.t.Errorf("%s, timeout %d, want %d", StateName(made.State), made.Timeout, seconds)
	}
}

// Somebody has the gateway's port that the new entry is to have: no other one is taken in its place.
func TestRenewTakenPort(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		g := newGate(t, natCases[4], v6)
		_, _, e := g.through()
		client, peer, other := g.through()
		_, err := g.Renew(&e, func(e *Entry) { e.Reply.Dst = other.Reply.Dst })
		if !errors.Is(err, unix.EEXIST) {
			t.Errorf("got %v", err)
		}
		if left := entries(t, openDumper(t, g.h), Filter{}); len(left) != 1 {
			t.Errorf("%+v", left)
		}
		if now := g.again(&other); unlike(now, other) {
			t.Errorf("was %+v, is %+v", other, now)
		}
		g.talk(client, peer)
	}
}

// What the kernel translated otherwise goes.
func TestRenewedOtherwise(t *testing.T) {
	g := newGate(t, natCases[4], false)
	_, _, e := g.through()
	want := e
	want.Reply.Dst = netip.AddrPortFrom(want.Reply.Dst.Addr(), 1)
	if got, err := g.made(&want); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := g.Again(&e); !errors.Is(err, ErrGone) {
		t.Errorf("it is still there: %v", err)
	}
}
