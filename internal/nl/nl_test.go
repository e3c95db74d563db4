package nl

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const testPort = 4711

// kernel plays the other end of a Conn.
type kernel struct {
	t  *testing.T
	fd int
}

func fake(t *testing.T) (*Conn, kernel) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	timeout := unix.Timeval{Usec: 50_000}
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return &Conn{fd: fds[0], port: testPort, buf: make([]byte, bufferSize)}, kernel{t, fds[1]}
}

// sends queues one datagram.
func (k kernel) sends(messages ...[]byte) {
	k.t.Helper()
	if _, err := unix.Write(k.fd, slices.Concat(messages...)); err != nil {
		k.t.Fatal(err)
	}
}

// msg is a message as the kernel would send it. The first request of a Conn has number 1.
func msg(typ, flags uint16, seq uint32, payload ...byte) []byte {
	b := append(AppendHeader(nil, typ, 0), payload...)
	if err := finishHeader(b, flags, seq, testPort); err != nil {
		panic(err)
	}
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func errno(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }

func done(seq uint32) []byte { return msg(unix.NLMSG_DONE, 0, seq, errno(0)...) }

const entry = unix.NLMSG_MIN_TYPE + 7

func request() []byte { return AppendHeader(nil, entry, 0) }

// dump returns the first bytes of the payloads that fn saw.
func dump(c *Conn, fail error) (string, error) {
	var seen []byte
	err := c.Dump(request(), func(_ uint16, payload []byte) error {
		seen = append(seen, payload[0])
		return fail
	})
	return string(seen), err
}

func TestDump(t *testing.T) {
	refused := errors.New("refused")
	huge := msg(entry, 0, 1, 'x')
	binary.NativeEndian.PutUint32(huge, 1<<31)
	tiny := msg(entry, 0, 1, 'x')
	binary.NativeEndian.PutUint32(tiny, 15)
	otherPort := msg(entry, 0, 1, 'x')
	binary.NativeEndian.PutUint32(otherPort[12:], 1)

	a, b, z := msg(entry, 0, 1, 'a'), msg(entry, 0, 1, 'b', 1), done(1)
	for _, c := range []struct {
		name string
		sent [][]byte // one datagram each
		fail error
		seen string
		want error
	}{
		{"one datagram", [][]byte{slices.Concat(a, b, z)}, nil, "ab", nil},
		{"three datagrams", [][]byte{a, b, z}, nil, "ab", nil},
		{"empty", [][]byte{z}, nil, "", nil},
		{"left over from before", [][]byte{msg(entry, 0, 0, 'x'), done(0), a, z}, nil, "a", nil},
		{"for another socket", [][]byte{otherPort, a, z}, nil, "a", nil},
		{"no operation", [][]byte{msg(unix.NLMSG_NOOP, 0, 1, 'x'), a, z}, nil, "a", nil},
		{"interrupted entry", [][]byte{msg(entry, unix.NLM_F_DUMP_INTR, 1, 'a'), b, z}, nil, "a", ErrInterrupted},
		{"interrupted end", [][]byte{a, msg(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 1, errno(0)...)}, nil, "a", ErrInterrupted},
		{"interrupted by a signal", [][]byte{a, msg(unix.NLMSG_DONE, 0, 1, errno(unix.EINTR)...)}, nil, "a", ErrInterrupted},
		{"refused", [][]byte{msg(unix.NLMSG_ERROR, 0, 1, errno(unix.EPERM)...)}, nil, "", unix.EPERM},
		{"failed in the end", [][]byte{a, msg(unix.NLMSG_DONE, 0, 1, errno(unix.ENOMEM)...)}, nil, "a", unix.ENOMEM},
		{"refused by the caller", [][]byte{a, b, z}, refused, "a", refused},
		{"too long", [][]byte{huge, a, z}, nil, "", ErrMalformed},
		{"too short", [][]byte{tiny, a, z}, nil, "", ErrMalformed},
		{"less than a header", [][]byte{{1, 2, 3}, a, z}, nil, "", ErrMalformed},
		{"end without a result", [][]byte{a, msg(unix.NLMSG_DONE, 0, 1)}, nil, "a", ErrMalformed},
		{"no end", [][]byte{a}, nil, "a", ErrTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, k := fake(t)
			for _, datagram := range c.sent {
				k.sends(datagram)
			}
			if seen, err := dump(conn, c.fail); seen != c.seen || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("saw %q, %v; want %q, %v", seen, err, c.seen, c.want)
			}
			k.sends(msg(entry, 0, 2, 'n'), done(2))
			if seen, err := dump(conn, nil); seen != "n" || err != nil {
				t.Errorf("the next dump saw %q, %v", seen, err)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	var seen []byte
	get := func(c *Conn, fail error) error {
		seen = nil
		return c.Request(request(), func(typ uint16, payload []byte) error {
			seen = append([]byte{byte(typ)}, payload...)
			return fail
		})
	}
	c, k := fake(t)
	k.sends(msg(entry, 0, 0, 'x'), msg(entry, 0, 1, 'a'))
	if err := get(c, nil); err != nil || string(seen) != string([]byte{entry, 'a'}) {
		t.Errorf("answer: saw %q, %v", seen, err)
	}
	k.sends(msg(unix.NLMSG_ERROR, 0, 2, errno(unix.ENOENT)...))
	if err := get(c, nil); !errors.Is(err, unix.ENOENT) || seen != nil {
		t.Errorf("refusal: saw %q, %v", seen, err)
	}
	k.sends(msg(entry, 0, 3, 'a'))
	if err := get(c, unix.EILSEQ); err != unix.EILSEQ {
		t.Errorf("refusal by the caller: %v", err)
	}
	if err := get(c, nil); !errors.Is(err, ErrTimeout) {
		t.Errorf("no answer: %v", err)
	}
}

func TestExecute(t *testing.T) {
	c, k := fake(t)
	k.sends(msg(entry, 0, 1, 'x'), msg(unix.NLMSG_ERROR, 0, 1, errno(0)...))
	k.sends(msg(unix.NLMSG_ERROR, 0, 2, errno(unix.EBUSY)...))
	if err := c.Execute(request()); err != nil {
		t.Error(err)
	}
	if err := c.Execute(request()); !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
}

func TestExplanation(t *testing.T) {
	header := request()
	text, _ := AppendAttr(nil, unix.NLMSGERR_ATTR_MSG, []byte("no luck\x00"))
	echo := slices.Concat(header, []byte{1, 2, 3, 4})
	binary.NativeEndian.PutUint32(echo, uint32(len(echo)))
	const flags = unix.NLM_F_ACK_TLVS
	for name, m := range map[string]message{
		"capped": {unix.NLMSG_ERROR, flags | unix.NLM_F_CAPPED, 1, testPort, slices.Concat(errno(unix.EINVAL), header, text)},
		"echoed": {unix.NLMSG_ERROR, flags, 1, testPort, slices.Concat(errno(unix.EINVAL), echo, text)},
		"done":   {unix.NLMSG_DONE, flags, 1, testPort, slices.Concat(errno(unix.EINVAL), text)},
	} {
		var e *Error
		if err := m.result(); !errors.As(err, &e) || e.Errno != unix.EINVAL || e.Msg != "no luck" {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if text := (&Error{unix.EINVAL, "no luck"}).Error(); text != "invalid argument (no luck)" {
		t.Error(text)
	}
}

// The real kernel: links are listed without any privilege.
func TestKernel(t *testing.T) {
	c, err := Dial(unix.NETLINK_ROUTE, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	links := append(AppendHeader(nil, unix.RTM_GETLINK, 0), make([]byte, unix.SizeofIfInfomsg)...)
	count := func(fail error) (n int, err error) {
		err = c.Dump(links, func(typ uint16, payload []byte) error {
			n++
			for a := ParseAttrs(payload[unix.SizeofIfInfomsg:]); a.Next(); {
				if a.Type() == unix.IFLA_IFNAME && strings.HasPrefix(string(a.Value()), "lo\x00") {
					return fail
				}
			}
			return nil
		})
		return n, err
	}
	all, err := count(nil)
	if err != nil || all == 0 {
		t.Fatalf("%d links, %v", all, err)
	}
	if _, err := count(unix.EILSEQ); err != unix.EILSEQ {
		t.Errorf("lo is not among the links: %v", err)
	}
	if n, err := count(nil); n != all || err != nil {
		t.Errorf("afterwards %d links, %v; want %d", n, err, all)
	}
	if err := c.Request(AppendHeader(nil, 0xffff, 0), nil); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("unknown request: %v", err)
	}
}

func TestDumpDoesNotAllocatePerMessage(t *testing.T) {
	c, k := fake(t)
	req := request()
	const runs = 20
	next := uint32(1)
	count := func(n int) float64 {
		var answers [][]byte // the run to warm up is one more
		for seq := next; len(answers) <= runs; seq++ {
			answers = append(answers, slices.Concat(slices.Repeat(msg(entry, 0, seq, 'a'), n), done(seq)))
		}
		next += uint32(len(answers))
		return testing.AllocsPerRun(runs, func() {
			unix.Write(k.fd, answers[0])
			answers = answers[1:]
			if err := c.Dump(req, func(uint16, []byte) error { return nil }); err != nil {
				t.Fatal(err)
			}
		})
	}
	if few, lots := count(1), count(1000); few != 0 || lots != 0 {
		t.Errorf("%v allocations for 1 message, %v for 1000", few, lots)
	}
}

func TestSendRefusesHalfAHeader(t *testing.T) {
	c, _ := fake(t)
	if err := c.Execute(make([]byte, 15)); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

func TestExecuteBoth(t *testing.T) {
	result := func(seq uint32, e unix.Errno) []byte { return msg(unix.NLMSG_ERROR, 0, seq, errno(e)...) }
	for name, want := range map[string][2]unix.Errno{
		"both done": {}, "first refused": {unix.ENOENT, 0}, "second refused": {0, unix.EEXIST}, "none done": {unix.ENOENT, unix.EEXIST},
	} {
		c, k := fake(t)
		k.sends(result(0, unix.EPERM), result(1, want[0]))
		k.sends(result(2, want[1]))
		k.sends(result(3, unix.EBUSY))
		first, second := c.ExecuteBoth(request(), append(request(), 1, 2, 3, 4))
		for i, err := range []error{first, second} {
			if !errors.Is(err, want[i]) && (err != nil || want[i] != 0) {
				t.Errorf("%s: answer %d is %v", name, i, err)
			}
		}
		if err := c.Execute(request()); !errors.Is(err, unix.EBUSY) {
			t.Errorf("%s: the next one: %v", name, err)
		}
		sent := make([]byte, 100)
		n, err := unix.Read(k.fd, sent)
		if err != nil {
			t.Fatal(err)
		}
		one, rest, err1 := split(sent[:n])
		two, rest, err2 := split(rest)
		if err1 != nil || err2 != nil || len(rest) != 0 || one.seq != 1 || two.seq != 2 || len(two.payload) != 4 {
			t.Errorf("%s: sent %+v, %+v and %d bytes", name, one, two, len(rest))
		}
	}
	c, _ := fake(t)
	if err1, err2 := c.ExecuteBoth(request(), make([]byte, 15)); !errors.Is(err1, ErrMalformed) || !errors.Is(err2, ErrMalformed) {
		t.Error(err1, err2)
	}
}
