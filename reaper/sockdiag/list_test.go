package sockdiag

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

func list(t *testing.T, c *Conn, q Query) []Socket {
	t.Helper()
	var found []Socket
	err := c.List(q, func(s *Socket) error {
		found = append(found, *s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(found, func(a, b Socket) int { return cmp.Compare(a.Cookie, b.Cookie) })
	return found
}

// someSockets opens connections of all families, and returns them as an unfiltered list shows them.
func someSockets(t *testing.T, h *netnstest.Host, c *Conn) []Socket {
	t.Helper()
	for range 5 {
		for _, f := range families {
			connect(t, h, f.network, f.listen, f.dial)
		}
	}
	all := list(t, c, Query{})
	if want := 2 * 5 * len(families); len(all) != want {
		t.Fatalf("listed %d sockets, want %d", len(all), want)
	}
	return all
}

// The kernel's filter and ours must agree. The kernel's alone is seen by taking ours away.
func TestPortFiltersAgree(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c := open(t, h)
	all := someSockets(t, h, c)
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		q := Query{LocalPorts: randomRanges(random, all), RemotePorts: randomRanges(random, all)}
		var want []Socket
		for _, s := range all {
			if q.States = openStates; q.match(&s) {
				want = append(want, s)
			}
		}
		if got := byKernelAlone(t, c, q); !slices.EqualFunc(got, want, sameSocket) {
			t.Fatalf("%+v: the kernel has %d sockets, we have %d", q, len(got), len(want))
		}
		if got := list(t, c, q); !slices.EqualFunc(got, want, sameSocket) {
			t.Fatalf("%+v: listed %d sockets, want %d", q, len(got), len(want))
		}
	}
}

func sameSocket(a, b Socket) bool { return a.Cookie == b.Cookie }

// randomRanges makes up to four ranges whose borders often are the ports of sockets.
func randomRanges(random *rand.Rand, sockets []Socket) []PortRange {
	var ranges []PortRange
	for range random.IntN(5) {
		port := sockets[random.IntN(len(sockets))].Local.Port()
		switch random.IntN(4) {
		case 0:
			ranges = append(ranges, PortRange{port, port})
		case 1:
			ranges = append(ranges, PortRange{port - uint16(random.IntN(2000)), port})
		case 2:
			ranges = append(ranges, PortRange{port, port + uint16(random.IntN(2000))})
		case 3:
			ranges = append(ranges, PortRange{uint16(random.Uint32()), uint16(random.Uint32())}) // may be empty
		}
	}
	return ranges
}

func byKernelAlone(t *testing.T, c *Conn, q Query) []Socket {
	t.Helper()
	var found []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req, err := appendList(nil, family, &q)
		if err != nil {
			t.Fatal(err)
		}
		err = c.nl.Dump(req, func(_ uint16, payload []byte) error {
			var s Socket
			err := decode(payload, &s)
			found = append(found, s)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(found, func(a, b Socket) int { return cmp.Compare(a.Cookie, b.Cookie) })
	return found
}

// The kernel takes the longest program that fits into an attribute; a longer one is left out.
func TestManyRanges(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c := open(t, h)
	p := connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	most := (maxBytecode - opSize) / rangeSize
	for _, n := range []int{most, most + 1} {
		ranges := slices.Repeat([]PortRange{{1, 1}}, n)
		ranges[n-1] = PortRange{p.listener.Port(), p.listener.Port()}
		if code := compile(ranges, nil); (code == nil) != (n > most) {
			t.Errorf("%d ranges make a program of %d bytes", n, len(code))
		}
		found := list(t, c, Query{LocalPorts: ranges})
		if len(found) != 1 || found[0].Local != p.server.LocalAddr() {
			t.Errorf("%d ranges: listed %v, want %v", n, found, p.server)
		}
	}
}

func TestListStates(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c, p := open(t, h), connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	want := func(q Query, states ...State) {
		t.Helper()
		var got []State
		for _, s := range list(t, c, q) {
			got = append(got, s.State)
		}
		slices.Sort(got)
		if !slices.Equal(got, states) {
			t.Errorf("query %+v: listed %v, want %v", q, got, states)
		}
	}
	want(Query{}, Established, Established)
	want(Query{States: States(Listen)}, Listen)
	want(Query{States: States(SynSent)})

	p.server.AllowHalfClose()
	if err := p.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	poll(t, func() bool { return len(list(t, c, Query{States: States(CloseWait, FinWait2)})) == 2 })
	want(Query{}, FinWait2, CloseWait)
	want(Query{States: States(TimeWait)})
}

// A socket in FIN_WAIT2 that nobody holds becomes a time-wait socket with the state FIN_WAIT2.
func TestOrphanIsTimeWait(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c, p := open(t, h), connect(t, h, "tcp4", "127.0.0.1:0", "127.0.0.1")
	p.server.AllowHalfClose()
	if err := p.client.Close(); err != nil {
		t.Fatal(err)
	}
	ports := []PortRange{{p.listener.Port(), p.listener.Port()}}
	q := Query{RemotePorts: ports, States: States(TimeWait)}
	poll(t, func() bool { return len(list(t, c, q)) == 1 })
	if q.States = 0; len(list(t, c, q)) != 0 {
		t.Error("it is listed as open")
	}
	s, err := c.Lookup(p.client.LocalAddr(), p.client.RemoteAddr())
	if err != nil || s.State != TimeWait || s.Inode != 0 {
		t.Errorf("looked up %+v, %v", s, err)
	}
	if err := c.Destroy(&s); !errors.Is(err, ErrRefused) {
		t.Errorf("destroy: %v", err)
	}
}

// A handshake whose SYN-ACK is lost stays in the listener's queue.
func TestHalfOpenIsNewSynRecv(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c := open(t, h)
	const rules = "table inet t {\nchain c {\ntype filter hook input priority 0\ntcp flags & (syn|ack) == syn|ack drop\n}\n}\n"
	if _, err := h.Pipe(t.Context(), rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	server := h.Listen(t, "tcp4", "127.0.0.1:0")
	startConnect(t, h, server.Addr())
	q := Query{States: States(NewSynRecv), LocalPorts: []PortRange{{server.Port(), server.Port()}}}
	poll(t, func() bool { return len(list(t, c, q)) == 1 })
	if q.States = 0; len(list(t, c, q)) != 0 {
		t.Error("it is listed as open")
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

func poll(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has not happened")
		}
	}
}

func TestListInfo(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c := open(t, h)
	connect(t, h, "tcp6", "[::1]:0", "::1")
	for _, info := range []bool{false, true} {
		for _, s := range list(t, c, Query{Info: info}) {
			if s.HasInfo != info {
				t.Errorf("asked for info: %v; got %+v", info, s)
			}
		}
	}
}

func TestListenersListsAll(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c := open(t, h)
	want := map[netip.AddrPort]bool{}
	for _, f := range families {
		p := connect(t, h, f.network, f.listen, f.dial)
		want[p.listener.Addr()] = true
	}
	got := map[netip.AddrPort]bool{}
	err := c.Listeners(func(local netip.AddrPort) error {
		got[local] = true
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, %v; want %v", got, err, want)
	}
}

func TestListEndsWithTheCallersError(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	c := open(t, h)
	all := someSockets(t, h, c)
	enough, calls := errors.New("enough"), 0
	err := c.List(Query{}, func(*Socket) error {
		calls++
		return enough
	})
	if !errors.Is(err, enough) || calls != 1 {
		t.Fatalf("got %v after %d calls", err, calls)
	}
	if got := list(t, c, Query{}); len(got) != len(all) {
		t.Fatalf("listed %d sockets afterwards, want %d", len(got), len(all))
	}
}
