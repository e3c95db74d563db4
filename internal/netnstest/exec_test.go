package netnstest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCommandsRunInTheHost(t *testing.T) {
	h := NewHost(t, "h")
	out, err := h.Output(t.Context(), "readlink", "/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if ino := uitoa(namespaceOf(t, h)); !strings.Contains(out, ino) {
		t.Fatalf("readlink says %s, want inode %s", out, ino)
	}
	rules := "table inet x { counter c { comment \"mine\"; }\n}\n"
	if _, err := h.Pipe(t.Context(), rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if out, err = h.Output(t.Context(), "nft", "list", "tables"); err != nil || strings.TrimSpace(out) != "table inet x" {
		t.Fatalf("nft list tables: %q, %v", out, err)
	}
	err = h.Run(t.Context(), "nft", "list", "table", "inet", "absent")
	if err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Fatalf("error without the program's stderr: %v", err)
	}
}

func TestCommandEndsWithItsContext(t *testing.T) {
	h := NewHost(t, "h")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := h.Run(ctx, "sleep", "60"); err == nil || time.Since(start) > 30*time.Second {
		t.Fatalf("sleep 60 returned %v after %v", err, time.Since(start))
	}
}

func TestSysctlsAreTheHostsOwn(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	const name = "net.ipv4.ip_default_ttl"
	if err := a.SetSysctl(name, "77"); err != nil {
		t.Fatal(err)
	}
	for h, want := range map[*Host]string{a: "77", b: "64"} {
		if got, err := h.Sysctl(name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %s", h.Name(), got, err, want)
		}
	}
	if _, err := a.Sysctl("net/ipv4/conf/lo/forwarding"); err != nil {
		t.Error(err)
	}
	if err := a.SetSysctl("net.ipv4.nothing", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown sysctl: %v, want not exist", err)
	}
}

func TestConntrackSysctls(t *testing.T) {
	h := NewHost(t, "h")
	rule := "table inet x { chain c { type filter hook input priority 0; ct state new accept; }\n}\n"
	if _, err := h.Pipe(t.Context(), rule, "nft", "-f", "-"); err != nil { // loads nf_conntrack
		t.Fatal(err)
	}
	const name = "net.netfilter.nf_conntrack_timestamp"
	if err := h.SetSysctl(name, "1"); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Sysctl(name); err != nil || got != "1" {
		t.Fatalf("%s: %q, %v", name, got, err)
	}
}
