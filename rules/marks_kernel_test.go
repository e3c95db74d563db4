package rules_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"curfew/internal/netnstest"
	"curfew/rules"
)

const ourMark = 0x63757266

func markUsers(t *testing.T, h *netnstest.Host) (users []string) {
	t.Helper()
	in(t, h, func() (err error) { users, err = rules.MarkUsers(ourMark); return err })
	return users
}

// What nft makes of each kind of rule, in a chain of its own.
func TestMarkUsers(t *testing.T) {
	const table = `
	set ours    { type mark; elements = { 1, 0x63757266 }; }
	set ranges  { type mark; flags interval; elements = { 0x10-0x20, 0x63757266 }; }
	set below   { type mark; flags interval; elements = { 0x10-0x63757265 }; }
	set above   { type mark; flags interval; elements = { 0x63757267-0xffffffff }; }
	set upwards { type mark; flags interval; elements = { 5-0xffffffff }; }
	set both    { type mark; flags interval; elements = { 0-5, 0x60000000-0x70000000 }; }
	set empty   { type mark; flags dynamic,timeout; }
	set pairs   { type mark . ipv4_addr; flags interval; elements = { 0x63757260-0x63757270 . 10.0.0.0/8 }; }
	set others  { type mark . ipv4_addr; flags interval; elements = { 0x10-0x20 . 10.0.0.0/8, 0x30 . 10.0.0.1 }; }
	map marks   { type ipv4_addr : mark; elements = { 10.0.0.1 : 1, 10.0.0.2 : 0x63757266 }; }
	map numbers { type ipv4_addr : mark; elements = { 10.0.0.1 : 1 }; }
`
	collide := []string{
		"meta mark 0x63757266",
		"meta mark and 0xff == 0x66",
		"meta mark and 0x4000 != 0",
		"meta mark and 0x4000 == 0", // lets others through
		"meta mark != 0",
		"meta mark != 0x63757266",
		"meta mark 0x60000000-0x70000000",
		"meta mark != 0x60000000-0x70000000",
		"meta mark > 5",
		"meta mark and 0xff >= 0x66",
		"meta mark { 1, 0x63757266 }",
		"meta mark { 1-5, 0x60000000-0x70000000 }",
		"meta mark != { 1, 0x63757266 }",
		"meta mark @ours", "meta mark @ranges", "meta mark @upwards",
		"meta mark . ip saddr { 0x63757266 . 10.0.0.1 }",
		"ip saddr . meta mark { 10.0.0.1 . 0x63757266 }",
		"meta mark . ip saddr != { 0x63757266 . 10.0.0.1 }",
		"meta mark . ip saddr @pairs",
		"meta mark vmap { 1 : drop, 0x63757266 : accept }",
		"meta mark vmap { 0-5 : drop, 0x60000000-0x70000000 : accept }",
		"meta mark vmap { 0 : drop, * : accept }",
		"meta mark vmap { 1-0x63757265 : drop, 0x63757266-0x70000000 : accept }",
		"meta mark vmap { 0-5 : drop, * : accept }",
		"meta mark and 0xf == 6 meta mark vmap { 1 : drop, * : accept }",
		"meta mark and 0xf == 6 meta mark != { 1, 2 }",
		"meta mark set 0x63757266",
		"ip saddr 10.0.0.1 meta mark set 0x63757266",
		"meta mark set meta mark or 0x63757266",
		"meta mark set ip saddr map { 10.0.0.1 : 0x63757266 }",
		"meta mark set ip saddr map @marks",
		"meta mark set meta mark map { 0x63757266 : 2 }",
		"ip protocol tcp tcp dport 80 meta mark 0x63757266 counter",
		"meta mark and 0xf == 6 meta mark and 0xf0 == 0x60",
	}
	harmless := []string{
		"meta mark 1",
		"meta mark != 1",
		"meta mark and 0xff == 0x67",
		"meta mark and 0x8000 == 0",
		"meta mark and 0xf == 6 meta mark and 0xf0 == 0x50",
		"meta mark 0x10-0x63757265",
		"meta mark != 0x10-0x20",
		"meta mark > 0x63757266",
		"meta mark { 1, 2 }",
		"meta mark { 1-5, 7 }",
		"meta mark != { 1-5, 7 }",
		"meta mark @below", "meta mark @above", "meta mark @both", "meta mark @empty",
		"meta mark . ip saddr { 1 . 10.0.0.1 }",
		"meta mark . ip saddr @others",
		"meta mark vmap { 1 : drop, 2-5 : accept }",
		"meta mark vmap { 1 : drop, * : accept }",
		"meta mark vmap { 0-5 : drop, 0x60000000-0x70000000 : drop }",
		"meta mark vmap { 0x63757266 : accept, * : accept }",
		"meta mark vmap { 1-5 : drop, 6-8 : accept, * : accept }",
		"meta mark and 0xf == 6 meta mark != { 1, 0x63757266 }",
		"meta mark 1 meta mark { 2, 0x63757266 }",
		"meta mark set 1",
		"meta mark set ct mark",
		"meta mark set meta mark or 1",
		"meta mark set meta mark and 0xff",
		"meta mark set ip saddr map @numbers",
		"ct mark 0x63757266",
		"ct mark set 0x63757266",
		"meta nftrace set 1",
		"ip saddr 99.117.114.102",
		"counter",
	}
	var input strings.Builder
	want := map[string]bool{}
	fmt.Fprintf(&input, "table ip mine {%s", table)
	for i, rule := range slices.Concat(collide, harmless) {
		name := fmt.Sprintf("c%d", i)
		want["ip mine "+name] = i < len(collide)
		fmt.Fprintf(&input, "chain %s { %s; }\n", name, rule)
	}
	input.WriteString("}")

	h := netnstest.NewHost(t, "host")
	if users := markUsers(t, h); users != nil {
		t.Errorf("in an empty namespace: %q", users)
	}
	in(t, h, func() error { return rules.Apply(config(t)) })
	if users := markUsers(t, h); users != nil {
		t.Errorf("of our own table: %q", users)
	}
	nft(t, h, input.String(), "-f", "-")
	users := markUsers(t, h)
	for i, rule := range slices.Concat(collide, harmless) {
		name := fmt.Sprintf("ip mine c%d", i)
		if got := slices.Contains(users, name); got != want[name] {
			t.Errorf("%s: %v, want %v", rule, got, want[name])
		}
	}
}

// Chains of every family are named as nft names them; another table of our name is not ours.
func TestMarkUsersOfFamilies(t *testing.T) {
	const rule = "{ chain c { meta mark set 0x63757266; meta mark 0x63757266; }; chain other { meta mark 1; }; }\n"
	h := netnstest.NewHost(t, "host")
	var input string
	var want []string
	for _, name := range []string{"inet t", "ip t", "ip6 t", "arp t", "bridge t", "netdev t", "ip curfew"} {
		input += "table " + name + rule
		want = append(want, name+" c")
	}
	nft(t, h, input, "-f", "-")
	users := markUsers(t, h)
	slices.Sort(users)
	slices.Sort(want)
	if !slices.Equal(users, want) {
		t.Errorf("users %q, want %q", users, want)
	}
}

// TestMarkUsersOfIptables has the rules that iptables-nft makes of "-m mark" and "-j MARK".
func TestMarkUsersOfIptables(t *testing.T) {
	info := func(size int, words ...uint32) xt.InfoAny {
		var b []byte
		for _, w := range words {
			b = binary.NativeEndian.AppendUint32(b, w)
		}
		u := xt.Unknown(append(b, make([]byte, size-len(b))...))
		return &u
	}
	match := func(words ...uint32) expr.Any { return &expr.Match{Name: "mark", Rev: 1, Info: info(16, words...)} }
	target := func(words ...uint32) expr.Any { return &expr.Target{Name: "MARK", Rev: 2, Info: info(8, words...)} }
	chains := map[string]expr.Any{
		"match":        match(0x66, 0xff, 0),
		"match-invert": match(ourMark, 0xffffffff, 1),
		"set":          target(ourMark, 0xffffffff),
		"-other":       match(1, 0xffffffff, 0),
		"-invert":      match(1, 0xffffffff, 1),
		"-set":         target(1, 0xffffffff),
	}
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		mangle := conn.AddTable(&nftables.Table{Name: "mangle", Family: nftables.TableFamilyIPv4})
		for name, word := range chains {
			c := conn.AddChain(&nftables.Chain{Name: name, Table: mangle})
			conn.AddRule(&nftables.Rule{Table: mangle, Chain: c, Exprs: []expr.Any{&expr.Counter{}, word}})
		}
		return conn.Flush()
	})
	users := markUsers(t, h)
	slices.Sort(users)
	if want := []string{"ip mangle match", "ip mangle match-invert", "ip mangle set"}; !slices.Equal(users, want) {
		t.Errorf("users %q, want %q", users, want)
	}
}
