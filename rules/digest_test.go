package rules_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
	"curfew/rules"
)

func digest(t *testing.T, h *netnstest.Host) (sum string) {
	t.Helper()
	in(t, h, func() (err error) { sum, err = rules.Digest(); return err })
	return sum
}

func TestDigestWithoutTable(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	nft(t, h, "table ip curfew { chain c { counter; }; }", "-f", "-")
	if err := h.Do(func() error { _, err := rules.Digest(); return err }); !errors.Is(err, rules.ErrNotInstalled) {
		t.Errorf("error %v, want ErrNotInstalled", err)
	}
}

// Neither what we do ourselves nor what others do in their tables changes it.
func TestDigestStays(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	apply := func() error { return rules.Apply(config(t)) }
	in(t, h, apply)
	first := digest(t, h)
	for name, change := range map[string]func(){
		"apply again": func() { in(t, h, apply) },
		"heartbeat":   func() { in(t, h, func() error { return rules.Beat(1, time.Now()) }) },
		"note":        func() { in(t, h, func() error { return rules.AddNote("more") }) },
		"other table": func() {
			nft(t, h, "table inet other { chain c { counter; }; set s { type mark; elements = { 1 }; }; }", "-f", "-")
		},
		"other family": func() { nft(t, h, "table ip curfew { chain c { counter; }; set s { type mark; }; }", "-f", "-") },
		"register": func() {
			nft(t, h, "add element inet curfew flows4 { 10.0.0.1 . 1 . 10.0.0.2 . 389 timeout 1h }", "-f", "-")
		},
		"adoption":       func() { nft(t, h, "add element inet curfew adopt { tcp timeout 5m }", "-f", "-") },
		"edit and undo":  func() { nft(t, h, "add chain inet curfew more\ndelete chain inet curfew more", "-f", "-") },
		"remove and new": func() { in(t, h, rules.Remove); in(t, h, apply) },
	} {
		change()
		if now := digest(t, h); now != first {
			t.Errorf("%s: digest was %s, is %s", name, first, now)
		}
	}
}

// The same parts made in another order, and so with other handles.
func TestDigestIsOfParts(t *testing.T) {
	var sums []string
	for _, parts := range []string{
		"set a { type mark; elements = { 1, 2 }; }; set b { type mark; }; chain c { counter; accept; }; chain d { drop; };",
		"chain d { drop; }; chain c { counter; accept; }; set b { type mark; }; set a { type mark; elements = { 2, 1 }; };",
		"set a { type mark; elements = { 1 }; }; set b { type mark; elements = { 2 }; }; chain c { counter; accept; }; chain d { drop; };",
		"set a { type mark; elements = { 1, 2 }; }; set b { type mark; }; chain c { counter; drop; }; chain d { accept; };",
	} {
		h := netnstest.NewHost(t, "host")
		nft(t, h, "table inet curfew { "+parts+" }", "-f", "-")
		sums = append(sums, digest(t, h))
	}
	if sums[0] != sums[1] {
		t.Errorf("in another order: %s, then %s", sums[0], sums[1])
	}
	if sums[0] == sums[2] || sums[0] == sums[3] {
		t.Errorf("other parts with the same digest: %v", sums)
	}
}

// Rules of all kinds that count or remember something.
func TestDigestStaysUnderTraffic(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	in(t, h, func() error { return rules.Apply(config(t)) })
	nft(t, h, `table inet curfew {
		counter seen { }
		quota spent { over 100 bytes }
		set counted { type inet_service; counter; elements = { 389, 9 }; }
		set met { type ipv4_addr; flags dynamic; size 100; }
		set limited { type ipv4_addr; flags dynamic; size 100; }
		chain watch {
			type filter hook output priority 300
			counter
			counter name "seen"
			quota name "spent"
			quota over 100 bytes
			limit rate 1/hour
			ct count 100
			tcp dport @counted
			meta nfproto ipv4 update @met { ip saddr counter }
			meta nfproto ipv4 update @limited { ip saddr limit rate 5/second burst 2 packets counter }
			meta mark set numgen inc mod 2
		}
	}`, "-f", "-")
	listed := nft(t, h, "", "list", "table", "inet", "curfew")
	before := digest(t, h)

	h.Listen(t, "tcp", "127.0.0.1:389")
	for range 3 {
		client := h.Dial(t, "tcp", "127.0.0.1:389", netnstest.DialOptions{})
		if _, err := client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	now := nft(t, h, "", "list", "table", "inet", "curfew")
	for _, value := range []string{`counter seen {\n.*`, `quota spent {\n.*`, `quota over .*`, `set counted (?s:.*?)\n\t}`, `set met (?s:.*?)\n\t}`} {
		pattern := regexp.MustCompile(value)
		if a, b := pattern.FindString(listed), pattern.FindString(now); a == b {
			t.Errorf("traffic did not change %q", b)
		}
	}
	if after := digest(t, h); after != before {
		t.Errorf("digest was %s, is %s", before, after)
	}
}

// Whatever a person changes by hand changes the digest.
func TestDigestOfHandEdits(t *testing.T) {
	for name, edit := range map[string]func(handle func(rule string) string) string{
		"insert rule": func(func(string) string) string { return "insert rule inet curfew input accept" },
		"add rule":    func(func(string) string) string { return "add rule inet curfew input accept" },
		"delete rule": func(h func(string) string) string {
			return "delete rule inet curfew output handle " + h("@inbound-by-port")
		},
		"flush chain":   func(func(string) string) string { return "flush chain inet curfew ldap-end" },
		"reorder rules": reorder,
		"comment":       func(h func(string) string) string { return replaceRST(h, `accept comment "mine"`) },
		"counter added": func(h func(string) string) string { return replaceRST(h, "counter accept") },
		"counter gone": func(h func(string) string) string {
			return "replace rule inet curfew watch handle " + h("counter") + " accept"
		},
		"verdict": func(h func(string) string) string {
			return "replace rule inet curfew watch handle " + h("counter") + " counter drop"
		},
		"policy":  func(func(string) string) string { return "add chain inet curfew input { policy drop; }" },
		"dormant": func(func(string) string) string { return "add table inet curfew { flags dormant; }" },
		"port":    func(func(string) string) string { return "add element inet curfew end-by-port { 99 : jump ldap-end }" },
		"port gone": func(func(string) string) string {
			return "delete element inet curfew end-by-port { 389 : jump ldap-end }"
		},
		"port elsewhere": otherTarget,
		"address":        func(func(string) string) string { return "add element inet curfew ssh-from4 { 11.0.0.0/8 }" },
		"address gone":   func(func(string) string) string { return "flush set inet curfew ssh-from4" },
		"chain":          func(func(string) string) string { return "add chain inet curfew more" },
		"base chain": func(func(string) string) string {
			return "add chain inet curfew more { type filter hook input priority 5; }"
		},
		"chain gone":     func(func(string) string) string { return "delete chain inet curfew probe" },
		"set":            func(func(string) string) string { return "add set inet curfew more { type mark; }" },
		"dynamic set":    func(func(string) string) string { return "add set inet curfew more { type mark; flags dynamic; }" },
		"map":            func(func(string) string) string { return "add map inet curfew more { type mark : verdict; }" },
		"counter object": func(func(string) string) string { return "add counter inet curfew more" },
		"object gone":    func(func(string) string) string { return "delete counter inet curfew unused" },
		"timeout values": otherTimeouts,
	} {
		h := netnstest.NewHost(t, "host")
		in(t, h, func() error { return rules.Apply(config(t)) })
		nft(t, h, `table inet curfew { counter unused { }; chain watch { counter accept; }; ct timeout mine { protocol tcp; policy = { close : 3 }; }; }`, "-f", "-")
		before := digest(t, h)
		nft(t, h, edit(func(rule string) string { return handleOf(t, h, rule) }), "-f", "-")
		if digest(t, h) == before {
			t.Errorf("%s: the digest stays", name)
		}
	}
}

// replaceRST gives a rule another end.
func replaceRST(handle func(string) string, end string) string {
	return "replace rule inet curfew end-output handle " + handle("tcp flags & rst == rst accept") + " tcp flags & rst == rst " + end
}

// reorder puts the first rule of a chain at its end.
func reorder(handle func(string) string) string {
	return "delete rule inet curfew output handle " + handle("meta l4proto != tcp accept") +
		"\nadd rule inet curfew output meta l4proto != tcp accept"
}

func otherTarget(func(string) string) string {
	return "delete element inet curfew end-by-port { 389 : jump ldap-end }\nadd element inet curfew end-by-port { 389 : jump web-end }"
}

func otherTimeouts(func(string) string) string {
	return "delete ct timeout inet curfew mine\ntable inet curfew { ct timeout mine { protocol tcp; policy = { close : 4 }; }; }"
}

// handleOf is the handle of the last rule with this text.
func handleOf(t *testing.T, h *netnstest.Host, rule string) (handle string) {
	t.Helper()
	for line := range strings.Lines(nft(t, h, "", "-a", "list", "table", "inet", "curfew")) {
		if text, number, ok := strings.Cut(line, " # handle "); ok && strings.Contains(text, rule) && !strings.HasSuffix(text, "{") {
			handle = strings.TrimSpace(number)
		}
	}
	if handle == "" {
		t.Fatal(fmt.Errorf("no rule with %q", rule))
	}
	return handle
}
