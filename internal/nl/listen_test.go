package nl

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func fakeListener(t *testing.T) (*Listener, kernel) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newListener(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); unix.Close(fds[1]) })
	return l, kernel{t, fds[1]}
}

// received is the first byte of the next message, or why there is none.
func received(l *Listener) (string, error) {
	typ, payload, err := l.Receive()
	if err == nil && typ != entry {
		err = errors.New("wrong type")
	}
	return string(payload[:min(1, len(payload))]), err
}

func TestReceive(t *testing.T) {
	l, k := fakeListener(t)
	a, b := msg(entry, 0, 0, 'a'), msg(entry, 0, 0, 'b', 1)
	k.sends(a, msg(unix.NLMSG_NOOP, 0, 0), b)
	k.sends([]byte{1, 2, 3})
	k.sends(a, []byte{1, 2, 3})
	k.sends(make([]byte, bufferSize))
	k.sends(b)
	for i, want := range []struct {
		seen string
		err  error
	}{{"a", nil}, {"b", nil}, {"", ErrMalformed}, {"a", nil}, {"", ErrMalformed}, {"", ErrMalformed}, {"b", nil}} {
		if seen, err := received(l); seen != want.seen || !errors.Is(err, want.err) {
			t.Errorf("message %d: %q, %v; want %q, %v", i, seen, err, want.seen, want.err)
		}
	}
}

func TestDiscard(t *testing.T) {
	l, k := fakeListener(t)
	a := msg(entry, 0, 0, 'a')
	k.sends(a, a)
	k.sends(a)
	if seen, err := received(l); seen != "a" || err != nil {
		t.Fatal(seen, err)
	}
	if err := l.Discard(); err != nil {
		t.Fatal(err)
	}
	k.sends(msg(entry, 0, 0, 'b'))
	if seen, err := received(l); seen != "b" || err != nil {
		t.Error(seen, err)
	}
}

func TestCloseWakesReceive(t *testing.T) {
	l, err := Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		t.Fatal(err)
	}
	waits, answer := make(chan bool), make(chan error)
	go func() {
		close(waits)
		_, _, err := l.Receive()
		answer <- err
	}()
	<-waits
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-answer:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("receive: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("receive still waits")
	}
	if _, _, err := l.Receive(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("receive after close: %v", err)
	}
	if err := l.Discard(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("discard after close: %v", err)
	}
}

func TestReceiveDoesNotAllocate(t *testing.T) {
	l, k := fakeListener(t)
	datagram := slices.Concat(msg(entry, 0, 0, 'a'), msg(entry, 0, 0, 'b'))
	if n := testing.AllocsPerRun(100, func() {
		unix.Write(k.fd, datagram)
		for range 2 {
			if _, _, err := l.Receive(); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSubscribeRefused(t *testing.T) {
	if _, err := Subscribe(unix.NETLINK_ROUTE, 1<<20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("group that does not exist: %v", err)
	}
	if _, err := Subscribe(1<<10, 1); err == nil {
		t.Error("subscribed to a family that does not exist")
	}
	if _, err := SubscribeFiltered(unix.NETLINK_ROUTE, []unix.SockFilter{{Code: 0xffff}}, unix.RTNLGRP_LINK); !errors.Is(err, unix.EINVAL) {
		t.Errorf("filter that is none: %v", err)
	}
}

// groupSender sends to a group of NETLINK_USERSOCK, which is there for processes. The kernel also gets each message,
// and refuses it.
func groupSender(t *testing.T, group uint32) func(...[]byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_USERSOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func(messages ...[]byte) {
		t.Helper()
		to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (group - 1)}
		if err := unix.Sendto(fd, slices.Concat(messages...), 0, to); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			t.Error(err)
		}
	}
}

// The real kernel loses messages, says so once, and the next one comes.
func TestOverrun(t *testing.T) {
	const group = 3
	h := netnstest.NewHost(t, "host")
	if err := h.Do(func() error {
		l, err := Subscribe(unix.NETLINK_USERSOCK, group)
		if err != nil {
			return err
		}
		defer l.Close()
		send := groupSender(t, group)
		for _, read := range []func() error{l.Discard, func() error { _, _, err := l.Receive(); return err }} {
			for range listenBuffer / bufferSize * 3 {
				send(msg(entry, 0, 0, make([]byte, bufferSize/2)...))
			}
			if err := read(); !errors.Is(err, ErrOverrun) {
				t.Errorf("after too many messages: %v", err)
			}
			send(msg(entry, 0, 0, 'n'))
			if seen, err := received(l); seen != "n" || err != nil {
				t.Errorf("the next one: %q, %v", seen, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A filter looks at the whole of what is sent together: here at the first byte after the first header.
func TestFilter(t *testing.T) {
	const group = 4
	takeB := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: unix.NLMSG_HDRLEN},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 'b', Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 20},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	h := netnstest.NewHost(t, "host")
	if err := h.Do(func() error {
		l, err := SubscribeFiltered(unix.NETLINK_USERSOCK, takeB, group)
		if err != nil {
			return err
		}
		defer l.Close()
		send := groupSender(t, group)
		send(msg(entry, 0, 0, 'a'))
		send(msg(entry, 0, 0, 'b'), msg(entry, 0, 0, 'c'))
		for _, want := range []string{"b", "c"} {
			if seen, err := received(l); seen != want || err != nil {
				t.Errorf("saw %q, %v; want %q", seen, err, want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// FuzzReceive reads whatever comes in one piece, to its end.
func FuzzReceive(f *testing.F) {
	f.Add(slices.Concat(msg(entry, 0, 0, 'a'), msg(entry, 0, 0, 'b')))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, _ := fakeListener(t)
		l.Close()
		l.rest = b
		for read := 0; ; {
			_, payload, err := l.Receive()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if read += len(payload); read > len(b) {
				t.Fatalf("%d bytes out of %d", read, len(b))
			}
		}
	})
}
