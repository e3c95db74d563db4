package challenge

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

const (
	port     = "8080"
	patience = 5 * time.Second
)

// families runs a test for IPv4 and IPv6.
func families(t *testing.T, test func(t *testing.T, f family)) {
	for _, f := range []family{overIPv4, overIPv6} {
		t.Run(f.network, func(t *testing.T) { test(t, f) })
	}
}

// family is what net calls the network and conntrack the family.
type family struct{ network, conntrack string }

var overIPv4, overIPv6 = family{"tcp4", "ipv4"}, family{"tcp6", "ipv6"}

// listen is the address to listen on.
func (f family) listen() string {
	if f.network == "tcp6" {
		return "[::]:" + port
	}
	return "0.0.0.0:" + port
}

// dial is the address of the server on h.
func (f family) dial(h *netnstest.Host) string {
	if f.network == "tcp6" {
		return "[" + h.Addr6().String() + "]:" + port
	}
	return h.Addr4().String() + ":" + port
}

// pair is a client that is wired to a server, and one connection between them.
type pair struct {
	client, server *netnstest.Host
	near, far      *netnstest.Conn // the client's end and the server's
}

// rules counts the bare ACKs that the server gets, and while the set armed has an element it rejects all that
// belongs to the connection, but not a RST. The rule on ct state switches connection tracking on.
const rules = `table inet test {
	set armed { type inet_proto; }
	counter answers {}
	chain probe { type filter hook output priority raw; meta mark 0x63003000 notrack; }
	chain input {
		type filter hook input priority filter;
		tcp dport 8080 tcp flags & (fin|syn|rst|psh|ack) == ack counter name answers
		tcp flags & rst == rst return
		ct state established tcp dport 8080 meta l4proto @armed reject with tcp reset
	}
}`

func newPair(t *testing.T, f family) *pair {
	t.Helper()
	p := &pair{client: netnstest.NewHost(t, "client"), server: netnstest.NewHost(t, "server")}
	netnstest.Link(t, p.client, p.server, 1)
	nft(t, p.server, rules)
	p.connect(t, f)
	return p
}

func (p *pair) connect(t *testing.T, f family) {
	t.Helper()
	s := p.server.Listen(t, f.network, f.listen())
	p.near = p.client.Dial(t, f.network, f.dial(p.server), netnstest.DialOptions{})
	p.far = s.Conn(t, p.near)
}

func nft(t *testing.T, h *netnstest.Host, ruleset string) {
	t.Helper()
	if _, err := h.Pipe(t.Context(), ruleset, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func openSender(t testing.TB, h *netnstest.Host, mark uint32) *Sender {
	t.Helper()
	var s *Sender
	err := h.Do(func() (err error) {
		s, err = Open(mark)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// send challenges the other end of c, as if from c.
func send(t *testing.T, s *Sender, c *netnstest.Conn, attempt int) {
	t.Helper()
	if err := s.Send(c.LocalAddr(), c.RemoteAddr(), attempt); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// answers is how many bare ACKs the server got.
func (p *pair) answers(t *testing.T) int {
	t.Helper()
	out, err := p.server.Output(t.Context(), "nft", "list", "counter", "inet", "test", "answers")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(out, "packets ")
	n, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		t.Fatalf("counter %q: %v", out, err)
	}
	return n
}

// kernelCounter reads one number of /proc/net/snmp or /proc/net/netstat.
func kernelCounter(t *testing.T, h *netnstest.Host, file, name string) int {
	t.Helper()
	var data []byte
	err := h.Do(func() (err error) {
		data, err = os.ReadFile("/proc/thread-self/net/" + file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j, n := range names {
			if n == name {
				v, _ := strconv.Atoi(values[j])
				return v
			}
		}
	}
	t.Fatalf("%s has no %s", file, name)
	return 0
}
