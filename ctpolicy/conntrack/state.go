package conntrack

import (
	"strconv"
	"strings"
)

// Where conntrack sees a TCP flow: TCP_CONNTRACK_* of include/uapi/linux/netfilter/nf_conntrack_tcp.h. No entry is in
// StateRetrans or StateUnack: these only have a timeout of their own.
const (
	StateNone = iota
	StateSynSent
	StateSynRecv
	StateEstablished
	StateFinWait
	StateCloseWait
	StateLastAck
	StateTimeWait
	StateClose
	StateSynSent2 // simultaneous open
	_
	_
	StateRetrans
	StateUnack
)

var stateNames = [...]string{
	StateNone:        "NONE",
	StateSynSent:     "SYN_SENT",
	StateSynRecv:     "SYN_RECV",
	StateEstablished: "ESTABLISHED",
	StateFinWait:     "FIN_WAIT",
	StateCloseWait:   "CLOSE_WAIT",
	StateLastAck:     "LAST_ACK",
	StateTimeWait:    "TIME_WAIT",
	StateClose:       "CLOSE",
	StateSynSent2:    "SYN_SENT2",
	StateRetrans:     "RETRANS",
	StateUnack:       "UNACK",
}

// StateName is the name that conntrack(8) and /proc/net/nf_conntrack use.
func StateName(state uint8) string {
	if int(state) < len(stateNames) && stateNames[state] != "" {
		return stateNames[state]
	}
	return "STATE_" + strconv.Itoa(int(state))
}

// TimeoutName is nft's word for a place in Timeouts.
func TimeoutName(place int) string {
	if place == TimeoutRetrans || place == TimeoutUnack {
		place += StateRetrans - TimeoutRetrans - StateSynSent
	}
	return strings.ToLower(StateName(uint8(place + StateSynSent)))
}
