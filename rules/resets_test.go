package rules_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
	"curfew/rules"
)

func TestClosed(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	client4, server4 := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:389")
	client6, server6 := netip.MustParseAddrPort("[fd00::1]:40000"), netip.MustParseAddrPort("[fd00::2]:389")
	var r *rules.Resets
	in(t, h, func() (err error) { r, err = rules.OpenResets(); return err })
	defer r.Close()
	if _, _, err := r.Closed(client4, server4); !errors.Is(err, rules.ErrNotInstalled) {
		t.Errorf("without a table: %v", err)
	}
	in(t, h, func() error { return rules.Apply(config(t)) })
	nft(t, h, `
		add element inet curfew closed4 { 10.0.0.1 . 40000 . 10.0.0.2 . 389 timeout 5m expires 4m }
		add element inet curfew closed6 { fd00::2 . 389 . fd00::1 . 40000 timeout 5m expires 299s }`, "-f", "-")
	for name, c := range map[string]struct {
		from, to netip.AddrPort
		ok       bool
		ago      time.Duration
	}{
		"client, IPv4": {client4, server4, true, time.Minute},
		"server, IPv4": {server4, client4, false, 0},
		"client, IPv6": {client6, server6, false, 0},
		"server, IPv6": {server6, client6, true, time.Second},
		"another port": {client4, netip.MustParseAddrPort("10.0.0.2:390"), false, 0},
	} {
		ago, ok, err := r.Closed(c.from, c.to)
		if err != nil || ok != c.ok || ago < c.ago || ago > c.ago+5*time.Second || !ok && ago != 0 {
			t.Errorf("%s: %v ago, %v, %v", name, ago, ok, err)
		}
	}
}

func TestHold(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	tuple := conntrack.Tuple{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("10.0.0.2:389")}
	if err := h.Do(func() error { return rules.Hold(tuple) }); err == nil {
		t.Error("no error without a table")
	}
	in(t, h, func() error { return rules.Apply(config(t)) })
	for range 2 { // also when it is held already
		in(t, h, func() error { return rules.Hold(tuple, conntrack.Tuple{Src: tuple.Dst, Dst: tuple.Src}, tuple) })
	}
	for _, pair := range []string{"40000 . 389", "389 . 40000"} {
		nft(t, h, "", "get", "element", "inet", "curfew", "held", "{ "+pair+" }")
	}
	many := make([]conntrack.Tuple, 3000)
	for i := range many {
		many[i] = conntrack.Tuple{Src: netip.AddrPortFrom(tuple.Src.Addr(), uint16(i+1)), Dst: tuple.Dst}
	}
	in(t, h, func() error { return rules.Hold(many...) })
	for _, pair := range []string{"1 . 389", "3000 . 389"} {
		nft(t, h, "", "get", "element", "inet", "curfew", "held", "{ "+pair+" }")
	}
}

// The sets of a policy come, change and go with it.
func TestAddressesByDifference(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	c := config(t)
	c.Notes = nil // they are added each time
	for _, change := range []func(p *ctpolicy.Policy){
		func(p *ctpolicy.Policy) {},
		func(p *ctpolicy.Policy) { p.From = prefixes(t, "0.0.0.0/0,2000::/3") },
		func(p *ctpolicy.Policy) { p.From, p.To = nil, prefixes(t, "::/0") },
		func(p *ctpolicy.Policy) { p.Direction = ctpolicy.Inbound },
		func(p *ctpolicy.Policy) { p.To, p.Except, p.Direction = nil, nil, ctpolicy.Any },
		func(p *ctpolicy.Policy) {
			p.Except = prefixes(t, "255.255.255.255,ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
		},
	} {
		change(&c.Policies[2])
		in(t, h, func() error { return rules.Apply(c) })
		if got := read(t, h); !got.Same(c.Policies) {
			t.Fatalf("read back: %+v\nwant %+v", got.Policies, c.Policies)
		}
		listed := nft(t, h, "", "list", "ruleset")
		fresh := netnstest.NewHost(t, "fresh")
		in(t, fresh, func() error { return rules.Apply(c) })
		got, want := sorted(listed), sorted(nft(t, fresh, "", "list", "ruleset"))
		if !slices.Equal(got, want) {
			t.Errorf("changed, the table is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// sorted are the lines of a table: what was added later is listed later.
func sorted(listed string) []string {
	lines := strings.Split(listed, "\n")
	slices.Sort(lines)
	return lines
}

func TestAdoptionWindow(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	c := config(t)
	c.Adopt = time.Minute
	apply := func() time.Duration {
		in(t, h, func() error { return rules.Apply(c) })
		return read(t, h).Adopt
	}
	if left := apply(); left > time.Minute || left < 50*time.Second {
		t.Errorf("at first: %v", left)
	}
	c.Adopt = time.Hour
	if left := apply(); left > time.Minute {
		t.Errorf("applied again without a change: %v", left)
	}
	c.Policies = c.Policies[:2]
	if left := apply(); left < 59*time.Minute {
		t.Errorf("after a change: %v", left)
	}
	c.Adopt, c.Policies = 0, c.Policies[:1]
	if left := apply(); left > time.Hour {
		t.Errorf("none asked for: %v", left)
	}
}
