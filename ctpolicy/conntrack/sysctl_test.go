package conntrack

import (
	"testing"

	"curfew/internal/netnstest"
)

func TestTimeoutOf(t *testing.T) {
	for state, want := range map[uint8]int{
		StateSynSent: TimeoutSynSent, StateSynRecv: TimeoutSynRecv, StateEstablished: TimeoutEstablished,
		StateFinWait: TimeoutFinWait, StateCloseWait: TimeoutCloseWait, StateLastAck: TimeoutLastAck,
		StateTimeWait: TimeoutTimeWait, StateClose: TimeoutClose, StateSynSent2: TimeoutSynSent2,
		// These are no entry's state.
		StateNone: TimeoutSynSent, StateRetrans: TimeoutSynSent, StateUnack: TimeoutSynSent, 255: TimeoutSynSent,
	} {
		if got := TimeoutOf(state); got != want {
			t.Errorf("%s: got %d, want %d", StateName(state), got, want)
		}
	}
}

func TestNamespaceTimeouts(t *testing.T) {
	h := netnstest.NewHost(t, "a")
	read := func() (timeouts Timeouts) {
		t.Helper()
		if err := h.Do(func() (err error) { timeouts, err = NamespaceTimeouts(); return err }); err != nil {
			t.Fatal(err)
		}
		return timeouts
	}
	if got := read(); got != DefaultTimeouts() {
		t.Errorf("got %v, want the kernel's defaults %v", got, DefaultTimeouts())
	}
	names := map[string][]int{
		"syn_sent": {TimeoutSynSent, TimeoutSynSent2}, "syn_recv": {TimeoutSynRecv},
		"established": {TimeoutEstablished}, "fin_wait": {TimeoutFinWait}, "close_wait": {TimeoutCloseWait},
		"last_ack": {TimeoutLastAck}, "time_wait": {TimeoutTimeWait}, "close": {TimeoutClose},
		"max_retrans": {TimeoutRetrans}, "unacknowledged": {TimeoutUnack},
	}
	want := DefaultTimeouts()
	for name, places := range names {
		if err := h.SetSysctl("net.netfilter.nf_conntrack_tcp_timeout_"+name, "77"); err != nil {
			t.Fatal(err)
		}
		for _, place := range places {
			want[place] = 77
		}
		if got := read(); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestTimestamps(t *testing.T) {
	h, other := netnstest.NewHost(t, "a"), netnstest.NewHost(t, "b")
	for _, want := range []bool{false, true, true, false} {
		var got bool
		err := h.Do(func() (err error) {
			if err := SetTimestamps(want); err != nil {
				return err
			}
			got, err = Timestamps()
			return err
		})
		if err != nil || got != want {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
		if err := other.Do(func() (err error) { got, err = Timestamps(); return err }); err != nil || got {
			t.Errorf("another namespace: %v, %v", got, err)
		}
	}
}
