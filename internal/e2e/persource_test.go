package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
)

// A crowd is a server with some clients, each on a wire of its own.
type crowd struct {
	t       *testing.T
	server  *netnstest.Host
	clients []*netnstest.Host
	wires   []netnstest.Wire
}

func newCrowd(t *testing.T, clients int) *crowd {
	t.Helper()
	c := &crowd{t: t, server: netnstest.NewHost(t, "server")}
	for i := range clients {
		client := netnstest.NewHost(t, fmt.Sprintf("client%d", i))
		c.clients = append(c.clients, client)
		c.wires = append(c.wires, netnstest.Link(t, client, c.server, i+1))
	}
	for _, address := range []string{"0.0.0.0:80", "[::]:81"} {
		network := "tcp4"
		if address[0] == '[' {
			network = "tcp6"
		}
		c.server.Listen(t, network, address)
	}
	return c
}

// knock opens a connection from a client and tells what it got.
func (c *crowd) knock(client int, from netip.Addr, timeout time.Duration) (*netnstest.Conn, string) {
	c.t.Helper()
	network, to := "tcp4", netip.AddrPortFrom(c.wires[client].B.Addr4, 80)
	if from.Is6() {
		network, to = "tcp6", netip.AddrPortFrom(c.wires[client].B.Addr6, 81)
	}
	conn, err := c.clients[client].Connect(network, to.String(), netnstest.DialOptions{From: netip.AddrPortFrom(from, 0), Timeout: timeout})
	switch {
	case err == nil:
		c.t.Cleanup(func() { conn.Close() })
		return conn, "open"
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, "refused"
	}
	var timed interface{ Timeout() bool }
	if errors.As(err, &timed) && timed.Timeout() {
		return nil, "timeout"
	}
	c.t.Fatalf("client %d: %v", client, err)
	return nil, ""
}

// close closes a connection, and waits until conntrack does not count it any more.
func (c *crowd) close(conn *netnstest.Conn) {
	c.t.Helper()
	conn.Close()
	port := fmt.Sprint(conn.LocalAddr().Port())
	eventually(c.t, "the end of "+conn.String(), func() bool {
		var list string
		for _, family := range []string{"ipv4", "ipv6"} {
			list += tool(c.t, c.server, "", "conntrack", "-L", "-f", family, "-p", "tcp", "--orig-port-src", port)
		}
		return !strings.Contains(list, "sport="+port) || strings.Contains(list, " TIME_WAIT ") || strings.Contains(list, " CLOSE ")
	})
}

// attempts is what three clients do: one wants too many connections at once, one opens them too fast, one behaves.
func (c *crowd) attempts() (got []string) {
	c.t.Helper()
	var greedy []*netnstest.Conn
	for range 13 {
		conn, what := c.knock(0, netip.Addr{}, 0)
		greedy = append(greedy, conn)
		got = append(got, "greedy "+what)
	}
	for range 13 {
		conn, what := c.knock(1, netip.Addr{}, 0)
		if conn != nil {
			c.close(conn)
		}
		got = append(got, "hasty "+what)
	}
	c.close(greedy[0]) // leaves room, but its rate is used up
	_, what := c.knock(0, netip.Addr{}, 0)
	got = append(got, "greedy again "+what)
	for range 3 {
		_, what := c.knock(2, netip.Addr{}, 0)
		got = append(got, "calm "+what)
	}
	return got
}

// The three limits of the question that curfew answers, beside the rules of iptables.
func TestPerSourceAsIptablesDoes(t *testing.T) {
	t.Parallel()
	ours, theirs := newCrowd(t, 3), newCrowd(t, 3)
	maxAge := 10 * time.Second
	reaper := start(t, ours.server, "--name", "web", "--port", "80", "--max-age", maxAge.String(), "--max-per-source", "10", "--new-per-source", "15/minute burst 10")
	for _, rule := range [][]string{
		{"-m", "connlimit", "--connlimit-above", "10", "--connlimit-mask", "32"},
		{"-m", "hashlimit", "--hashlimit-name", "new", "--hashlimit-mode", "srcip", "--hashlimit-above", "15/minute", "--hashlimit-burst", "10"},
	} {
		args := slices.Concat([]string{"-A", "INPUT", "-p", "tcp", "--syn", "--dport", "80"}, rule, []string{"-j", "REJECT", "--reject-with", "tcp-reset"})
		tool(t, theirs.server, "", "iptables", args...)
	}
	want, got := theirs.attempts(), ours.attempts()
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("attempt %d: %s, with iptables %s", i, got[i], want[i])
		}
	}
	counters := readStatus(t, ours.server).Policies[0].Counters
	if n, m := counters["max_per_source"].Packets, counters["new_per_source"].Packets; n != 3 || m != 4 {
		t.Errorf("counted %d for max_per_source and %d for new_per_source, want 3 and 4", n, m)
	}
	reaper.await("msg=refused policy=web ")
}

// A refused flow gets a reset or nothing, and in report mode what it wants.
func TestPerSourceRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want string
		flags      []string
	}{
		{"reset", "refused", nil},
		{"drop", "timeout", []string{"--refuse", "drop"}},
		{"report", "open", []string{"--mode", "report"}},
	} {
		crowd := newCrowd(t, 1)
		succeed(t, crowd.server, append([]string{"apply", "--name", "web", "--port", "80,81", "--max-per-source", "2"}, c.flags...)...)
		for _, from := range []netip.Addr{crowd.wires[0].A.Addr4, crowd.wires[0].A.Addr6} {
			var first *netnstest.Conn
			for i, want := range []string{"open", "open", c.want} {
				conn, got := crowd.knock(0, from, 500*time.Millisecond)
				if got != want {
					t.Errorf("%s, %s: connection %d is %s, want %s", c.name, from, i, got, want)
				}
				if i == 0 {
					first = conn
				}
			}
			crowd.close(first)
			if _, got := crowd.knock(0, from, 0); c.name == "reset" && got != "open" {
				t.Errorf("%s, %s: after one has closed, another is %s", c.name, from, got)
			}
		}
		if n := readStatus(t, crowd.server).Policies[0].Counters["max_per_source"].Packets; n < 2 {
			t.Errorf("%s: %d refused flows were counted, want 2 or more", c.name, n)
		}
	}
}

// Over IPv6 a client has a prefix.
func TestPerSourcePrefix6(t *testing.T) {
	t.Parallel()
	crowd := newCrowd(t, 1)
	neighbour, stranger := netip.MustParsePrefix("fd00:1::77/64"), netip.MustParsePrefix("fd00:1:0:1::1/64")
	for _, p := range []netip.Prefix{neighbour, stranger} {
		if err := crowd.clients[0].AddAddr(crowd.wires[0].A.Dev, p); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, crowd.server, "", "ip", "-6", "route", "add", "fd00:1:0:1::/64", "dev", crowd.wires[0].B.Dev)
	succeed(t, crowd.server, "apply", "--name", "web", "--port", "81", "--max-per-source", "2")
	for i, k := range []struct {
		from netip.Addr
		want string
	}{
		{crowd.wires[0].A.Addr6, "open"},
		{neighbour.Addr(), "open"},
		{crowd.wires[0].A.Addr6, "refused"},
		{neighbour.Addr(), "refused"},
		{stranger.Addr(), "open"},
		{stranger.Addr(), "open"},
		{stranger.Addr(), "refused"},
	} {
		if _, got := crowd.knock(0, k.from, 0); got != k.want {
			t.Errorf("connection %d from %s is %s, want %s", i, k.from, got, k.want)
		}
	}
}

// A change elsewhere forgets nobody's connections.
func TestPerSourceStaysOnReload(t *testing.T) {
	t.Parallel()
	crowd := newCrowd(t, 1)
	web := []string{"apply", "--name", "web", "--port", "80", "--max-per-source", "2"}
	succeed(t, crowd.server, web...)
	for range 2 {
		crowd.knock(0, netip.Addr{}, 0)
	}
	succeed(t, crowd.server, append(web, "--name", "mail", "--port", "25", "--max-age", "1h")...)
	if _, got := crowd.knock(0, netip.Addr{}, 0); got != "refused" {
		t.Errorf("after a reload the third connection is %s", got)
	}
}

// A SYN that is sent again counts once, and is noted: the flow is younger than its entry.
func TestRepeatedSyn(t *testing.T) {
	t.Parallel()
	path := netnstest.NewPath(t)
	path.Server.Listen(t, "tcp", ":80")
	succeed(t, path.Gateway, "apply", "--name", "web", "--port", "80", "--max-age", "1h", "--new-per-source", "1/hour burst 2")
	connect := func() {
		path.Client.Dial(t, "tcp4", netip.AddrPortFrom(path.Server.Addr4(), 80).String(), netnstest.DialOptions{})
	}
	labels := func() (retried, covered int) {
		do(t, path.Gateway, func() error {
			dumper, err := conntrack.Open(1 << 20)
			if err != nil {
				return err
			}
			defer dumper.Close()
			return dumper.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
				if e.HasLabel(ctpolicy.LabelCovered) {
					covered++
				}
				if e.HasLabel(ctpolicy.LabelRetried) {
					retried++
				}
				return nil
			})
		})
		return retried, covered
	}
	connect()
	if retried, covered := labels(); retried != 0 || covered != 1 {
		t.Errorf("after a handshake %d flows are noted as retried, and %d covered", retried, covered)
	}
	tool(t, path.Server, "table inet deaf { chain pre { type filter hook prerouting priority raw; tcp flags syn drop; }; }", "nft", "-f", "-")
	go func() {
		time.Sleep(500 * time.Millisecond) // the client sends its SYN again a second after the first
		_ = path.Server.Run(t.Context(), "nft", "delete", "table", "inet", "deaf")
	}()
	connect()
	if retried, covered := labels(); retried != 1 || covered != 2 {
		t.Errorf("after a SYN was sent again %d flows are noted as retried, and %d covered", retried, covered)
	}
}
