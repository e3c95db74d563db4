package conntrack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Timeouts are the seconds for which an entry lives after a packet, in the order of the ct timeout attributes
// (CTA_TIMEOUT_TCP_*, include/uapi/linux/netfilter/nfnetlink_cttimeout.h).
type Timeouts [11]uint32

// The places in Timeouts.
const (
	TimeoutSynSent = iota
	TimeoutSynRecv
	TimeoutEstablished
	TimeoutFinWait
	TimeoutCloseWait
	TimeoutLastAck
	TimeoutTimeWait
	TimeoutClose
	TimeoutSynSent2
	TimeoutRetrans
	TimeoutUnack
)

// TimeoutOf is the place of a TCP state's timeout.
func TimeoutOf(state uint8) int {
	if state < StateSynSent || state > StateSynSent2 {
		return TimeoutSynSent
	}
	return int(state) - StateSynSent
}

const sysctlDir = "/proc/sys/net/netfilter/nf_conntrack_"

// timeoutSysctls are in the order of Timeouts. SYN_SENT2 has no sysctl; we give it what SYN_SENT
// has.
var timeoutSysctls = [...]string{
	"syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close",
	"syn_sent", "max_retrans", "unacknowledged",
}

// NamespaceTimeouts reads nf_conntrack_tcp_timeout_* of the calling thread's namespace. The files exist only once
// nf_conntrack is loaded: until then it answers an error that matches fs.ErrNotExist.
func NamespaceTimeouts() (t Timeouts, err error) {
	for i, name := range timeoutSysctls {
		n, err := readSysctl("tcp_timeout_" + name)
		if err != nil {
			return t, err
		}
		t[i] = uint32(n)
	}
	return t, nil
}

// DefaultTimeouts are those of a namespace where nobody changed them (nf_conntrack_proto_tcp.c).
func DefaultTimeouts() Timeouts {
	return Timeouts{120, 60, 432000, 120, 60, 30, 120, 10, 120, 300, 300}
}

// Timestamps tells whether new entries get a birth time (nf_conntrack_timestamp).
func Timestamps() (bool, error) {
	n, err := readSysctl("timestamp")
	return n != 0, err
}

// SetTimestamps turns birth times on or off for this namespace. Entries that have one keep it.
func SetTimestamps(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := os.WriteFile(sysctlDir+"timestamp", []byte(value), 0); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set nf_conntrack_timestamp: %w (the kernel needs CONFIG_NF_CONNTRACK_TIMESTAMP)", err)
		}
		return fmt.Errorf("set nf_conntrack_timestamp: %w", err)
	}
	return nil
}

func readSysctl(name string) (int, error) {
	text, err := os.ReadFile(sysctlDir + name)
	if err != nil {
		return 0, fmt.Errorf("read nf_conntrack_%s: %w", name, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read nf_conntrack_%s: %w", name, err)
	}
	return n, nil
}
