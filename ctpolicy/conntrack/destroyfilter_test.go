package conntrack

import (
	"net"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// event is a message as the kernel sends it.
func event(parts ...[]byte) []byte {
	b := append(nl.AppendHeader(nil, deleteEntry, 0), header...)
	return slices.Concat(append([][]byte{b}, parts...)...)
}

func tcpState(state byte) []byte {
	return attr(ctaProtoInfo, attr(ctaProtoInfoTCP, attr(ctaTCPState, []byte{state})))
}

// filterSocket is a socket with the filter. It tells whether a message passes.
func filterSocket(t *testing.T, filter []unix.SockFilter) func([]byte) bool {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fds[0], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		t.Fatal(err)
	}
	return func(message []byte) bool {
		if _, err := unix.Write(fds[1], message); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(message)+1)
		n, err := unix.Read(fds[0], got)
		if err == nil && n != len(message) {
			t.Fatalf("cut to %d of %d bytes", n, len(message))
		}
		return err == nil
	}
}

func TestDestroyFilter(t *testing.T) {
	passes := filterSocket(t, destroyFilter([]PortRange{{22, 22}, {8000, 8010}, {65535, 65535}}))
	orig := func(src, dst string) []byte { return tuple(ctaTupleOrig, unix.IPPROTO_TCP, src, dst) }
	web, web6 := orig("10.0.0.1:40000", "10.0.0.2:8005"), orig("[fd00::1]:40000", "[fd00::2]:8005")
	for _, c := range []struct {
		name  string
		parts [][]byte
		want  bool
	}{
		{"IPv4", [][]byte{web, tcpState(StateEstablished)}, true},
		{"IPv6", [][]byte{web6, tcpState(StateEstablished)}, true},
		{"behind other attributes", [][]byte{attr(ctaZone, be16(7)), attr(ctaID, be32(1)), web, attr(ctaMark, be32(1)), tcpState(StateEstablished)}, true},
		{"no state", [][]byte{web}, true},
		{"empty state", [][]byte{web, attr(ctaProtoInfo)}, true},
		{"nothing of TCP", [][]byte{web, attr(ctaProtoInfo, attr(ctaProtoInfoTCP, attr(ctaTCPScaleOrig, []byte{7})))}, true},
		{"first port", [][]byte{orig("10.0.0.1:40000", "10.0.0.2:8000")}, true},
		{"last port", [][]byte{orig("10.0.0.1:40000", "10.0.0.2:8010")}, true},
		{"before it", [][]byte{orig("10.0.0.1:40000", "10.0.0.2:7999")}, false},
		{"behind it", [][]byte{orig("10.0.0.1:40000", "10.0.0.2:8011")}, false},
		{"highest port", [][]byte{orig("10.0.0.1:40000", "10.0.0.2:65535")}, true},
		{"source port", [][]byte{orig("10.0.0.1:22", "10.0.0.2:40000"), tcpState(StateEstablished)}, true},
		{"port of the reply only", [][]byte{orig("10.0.0.1:40000", "10.0.0.2:80"), tuple(ctaTupleReply, unix.IPPROTO_TCP, "10.0.0.2:22", "10.0.0.1:40000")}, false},
		{"UDP", [][]byte{tuple(ctaTupleOrig, unix.IPPROTO_UDP, "10.0.0.1:40000", "10.0.0.2:8005")}, false},
		{"no tuple", [][]byte{tcpState(StateEstablished)}, false},
		{"empty tuple", [][]byte{attr(ctaTupleOrig), tcpState(StateEstablished)}, false},
		{"nothing", nil, false},
	} {
		if got := passes(event(c.parts...)); got != c.want {
			t.Errorf("%s: passes is %v", c.name, got)
		}
	}
	for state := range byte(StateSynSent2 + 1) {
		open := state == StateEstablished || state == StateFinWait || state == StateCloseWait || state == StateLastAck
		if got := passes(event(web, tcpState(state))); got != open {
			t.Errorf("state %s: passes is %v", StateName(state), got)
		}
	}
	all := filterSocket(t, destroyFilter(make([]PortRange, maxFilterRanges+1)))
	if !all(event(web, tcpState(StateEstablished))) || all(event(web, tcpState(StateTimeWait))) {
		t.Error("with too many ranges")
	}
}

// FuzzDestroyFilter compares the filter with the decoder, on what the kernel could send.
func FuzzDestroyFilter(f *testing.F) {
	f.Add(uint16(22), uint16(40000), byte(StateEstablished), byte(unix.IPPROTO_TCP), true)
	f.Add(uint16(40000), uint16(8005), byte(StateLastAck), byte(unix.IPPROTO_TCP), false)
	ports := []PortRange{{22, 22}, {8000, 8010}, {65535, 65535}}
	f.Fuzz(func(t *testing.T, src, dst uint16, state, proto byte, six bool) {
		client, server := "10.0.0.1", "10.0.0.2"
		if six {
			client, server = "fd00::1", "fd00::2"
		}
		client = net.JoinHostPort(client, strconv.Itoa(int(src)))
		server = net.JoinHostPort(server, strconv.Itoa(int(dst)))
		message := event(tuple(ctaTupleOrig, proto, client, server), tuple(ctaTupleReply, proto, server, client), tcpState(state))
		var e Entry
		ok, err := decode(message[unix.NLMSG_HDRLEN:], &e)
		if err != nil {
			t.Fatal(err)
		}
		in := func(port uint16) bool {
			return slices.ContainsFunc(ports, func(r PortRange) bool { return r.First <= port && port <= r.Last })
		}
		want := ok && e.State >= StateEstablished && e.State <= StateLastAck && (in(e.Orig.Src.Port()) || in(e.Orig.Dst.Port()))
		if got := filterSocket(t, destroyFilter(ports))(message); got != want {
			t.Errorf("%v in %s, protocol %d: passes is %v", e.Orig, StateName(state), proto, got)
		}
	})
}
