package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// trackingHost is a host that tracks connections, with their birth time. Port 9 never answers; ports 81 to 83 are
// special.
func trackingHost(t *testing.T) *netnstest.Host {
	t.Helper()
	h := netnstest.NewHost(t, "a")
	const rules = `
table inet t {
	chain zones {
		type filter hook output priority raw
		tcp dport 82 ct zone set 7
		tcp sport 82 ct zone set 7
		tcp dport 83 ct original zone set 8
	}
	chain out {
		type filter hook output priority mangle
		ct state new tcp dport 81 ct mark set 0xc0ffee ct label set 5
	}
	chain in {
		type filter hook input priority 0
		tcp dport 9 drop
	}
}
table ip nat {
	chain out {
		type nat hook output priority -100
		tcp dport 84 redirect to :81
	}
}`
	if _, err := h.Pipe(t.Context(), rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := h.SetSysctl("net.netfilter.nf_conntrack_timestamp", "1"); err != nil {
		t.Fatal(err)
	}
	return h
}

func openDumper(t *testing.T, h *netnstest.Host) *Dumper {
	t.Helper()
	var d *Dumper
	if err := h.Do(func() (err error) { d, err = Open(1 << 20); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func dial(t *testing.T, h *netnstest.Host, addr string) *netnstest.Conn {
	t.Helper()
	return h.Dial(t, "tcp", addr, netnstest.DialOptions{})
}

// entries is the table by original tuple.
func entries(t *testing.T, d *Dumper, f Filter) map[Tuple]Entry {
	t.Helper()
	found := map[Tuple]Entry{}
	err := d.Dump(f, func(e *Entry) error {
		found[e.Orig] = *e
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func origOf(client *netnstest.Conn) Tuple { return Tuple{client.LocalAddr(), client.RemoteAddr()} }

func TestDump(t *testing.T) {
	h := trackingHost(t)
	for _, addr := range []string{"127.0.0.1:81", "[::1]:81", "127.0.0.1:82", "127.0.0.1:83"} {
		h.Listen(t, "tcp", addr)
	}
	sendUDP(t, h)
	d := openDumper(t, h)
	before := time.Now()

	for _, c := range []struct {
		addr string
		zone uint16
		nat  bool
	}{
		{"127.0.0.1:81", 0, false},
		{"[::1]:81", 0, false},
		{"127.0.0.1:82", 7, false},
		{"127.0.0.1:83", 8, false},
		{"127.0.0.1:84", 0, true},
	} {
		client := dial(t, h, c.addr)
		e, ok := entries(t, d, Filter{})[origOf(client)]
		if !ok {
			t.Fatalf("%s: no entry", c.addr)
		}
		reply := Tuple{e.Orig.Dst, e.Orig.Src}
		status := uint32(StatusSeenReply | StatusAssured | StatusConfirmed)
		if c.nat {
			reply.Src = netip.MustParseAddrPort("127.0.0.1:81")
			status |= StatusDstNAT
		}
		const done = StatusSrcNATDone | StatusDstNATDone // set for all flows, or for none
		if e.Reply != reply || e.Status&^done != status || e.Zone != c.zone {
			t.Errorf("%s: reply %v, status %#x, zone %d", c.addr, e.Reply, e.Status, e.Zone)
		}
		if e.State != StateEstablished || e.Timeout < 400000 || e.Timeout > 432000 || e.ID == 0 {
			t.Errorf("%s: %s, timeout %d, id %d", c.addr, StateName(e.State), e.Timeout, e.ID)
		}
		if start := time.Unix(0, e.Start); start.Before(before) || start.After(time.Now()) {
			t.Errorf("%s: born at %v", c.addr, start)
		}
		if e.OrigFlags&e.ReplyFlags&0x03 != 0x03 {
			t.Errorf("%s: flags %#x and %#x are without window scaling and SACK", c.addr, e.OrigFlags, e.ReplyFlags)
		}
		checkLabel(t, &e)
	}
}

// checkLabel compares mark and label with the rules of trackingHost. Output at mangle comes before NAT.
func checkLabel(t *testing.T, e *Entry) {
	t.Helper()
	special := e.Orig.Dst.Port() == 81
	if (e.Mark == 0xc0ffee) != special {
		t.Errorf("%v: mark %#x", e.Orig, e.Mark)
	}
	for bit := range 128 {
		if e.HasLabel(bit) != (special && bit == 5) {
			t.Errorf("%v: label bit %d is %v", e.Orig, bit, e.HasLabel(bit))
		}
	}
}

// sendUDP makes an entry that a dump must leave out.
func sendUDP(t *testing.T, h *netnstest.Host) {
	t.Helper()
	err := h.Do(func() error {
		c, err := net.Dial("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := h.Output(t.Context(), "conntrack", "-L", "-p", "udp"); err != nil || out == "" {
		t.Fatalf("no UDP entry: %v", err)
	}
}

func TestFilterMatch(t *testing.T) {
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{Status: StatusDying}, true},
		{Filter{StatusAssured, StatusAssured}, true},
		{Filter{StatusAssured, StatusAssured | StatusFixedTimeout}, true},
		{Filter{0, StatusFixedTimeout}, true},
		{Filter{0, StatusAssured}, false},
		{Filter{StatusFixedTimeout, StatusFixedTimeout}, false},
	} {
		if got := c.f.match(&Entry{Status: StatusAssured | StatusConfirmed}); got != c.want {
			t.Errorf("%+v: got %v", c.f, got)
		}
	}
}

func TestDumpFilter(t *testing.T) {
	h := trackingHost(t)
	h.Listen(t, "tcp", "127.0.0.1:80")
	d := openDumper(t, h)
	client := dial(t, h, "127.0.0.1:80")
	startConnect(t, h, netip.MustParseAddrPort("127.0.0.1:9"))
	if both := entries(t, d, Filter{}); len(both) != 2 {
		t.Fatalf("%d entries, want 2", len(both))
	}

	answered := entries(t, d, Filter{StatusSeenReply, StatusSeenReply})
	if _, ok := answered[origOf(client)]; len(answered) != 1 || !ok {
		t.Errorf("answered: %v", answered)
	}
	unanswered := entries(t, d, Filter{0, StatusSeenReply})
	if _, ok := unanswered[origOf(client)]; len(unanswered) != 1 || ok {
		t.Errorf("unanswered: %v", unanswered)
	}
	if got := entries(t, d, Filter{StatusDying, StatusDying | StatusSeenReply}); len(got) != 0 {
		t.Errorf("dying: %v", got)
	}
	if got := entries(t, d, Filter{Status: StatusDying}); len(got) != 2 {
		t.Errorf("a status without a mask filters: %v", got)
	}
}

// startConnect sends a SYN and doesn't wait for the answer.
func startConnect(t *testing.T, h *netnstest.Host, to netip.AddrPort) {
	t.Helper()
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	})
	if !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect to %v: %v, want EINPROGRESS", to, err)
	}
}

// What the kernel sends by itself, without our filter: it knows the attributes since Linux 5.15.
func TestKernelFilters(t *testing.T) {
	h := trackingHost(t)
	h.Listen(t, "tcp", "127.0.0.1:80")
	d := openDumper(t, h)
	dial(t, h, "127.0.0.1:80")
	for _, c := range []struct {
		f    Filter
		want int
	}{
		{Filter{}, 1},
		{Filter{StatusSeenReply, StatusSeenReply | StatusFixedTimeout}, 1},
		{Filter{0, StatusFixedTimeout}, 1},
		{Filter{StatusFixedTimeout, StatusFixedTimeout}, 0},
	} {
		n := 0
		err := d.conn.Dump(appendDump(nil, c.f), func(uint16, []byte) error { n++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		if n != c.want && kernelAtLeast(t, 5, 15) {
			t.Errorf("%+v: the kernel sent %d entries, want %d", c.f, n, c.want)
		}
	}
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &gotMajor, &gotMinor); err != nil {
		t.Fatal(err)
	}
	return slices.Compare([]int{gotMajor, gotMinor}, []int{major, minor}) >= 0
}

func TestDumpEndsWithTheCallersError(t *testing.T) {
	h := trackingHost(t)
	h.Listen(t, "tcp", "127.0.0.1:80")
	d := openDumper(t, h)
	for range 3 {
		dial(t, h, "127.0.0.1:80")
	}
	enough, calls := errors.New("enough"), 0
	err := d.Dump(Filter{}, func(*Entry) error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		t.Fatalf("got %v after %d calls", err, calls)
	}
	if n := len(entries(t, d, Filter{})); n != 3 {
		t.Fatalf("%d entries afterwards, want 3", n)
	}
	calls = 0
	err = d.Dump(Filter{}, func(*Entry) error { calls++; return ErrInterrupted })
	if !errors.Is(err, ErrInterrupted) || calls != dumpAttempts {
		t.Fatalf("interrupted: got %v after %d calls", err, calls)
	}
}

func TestDumpDoesNotAllocatePerFlow(t *testing.T) {
	h := trackingHost(t)
	h.Listen(t, "tcp", "127.0.0.1:80")
	d := openDumper(t, h)
	allocations := func() float64 {
		return testing.AllocsPerRun(10, func() {
			if err := d.Dump(Filter{}, func(*Entry) error { return nil }); err != nil {
				t.Fatal(err)
			}
		})
	}
	dial(t, h, "127.0.0.1:80")
	few := allocations()
	for range 300 {
		dial(t, h, "127.0.0.1:80")
	}
	if n := len(entries(t, d, Filter{})); n != 301 {
		t.Fatalf("%d entries, want 301", n)
	}
	if many := allocations(); many > few+1 { // other goroutines may allocate a little
		t.Errorf("%v allocations for 1 flow, %v for 301", few, many)
	}
}
