package sockdiag

import "strconv"

// State is the state of a TCP socket, as in include/net/tcp_states.h.
type State uint8

// The states.
const (
	Established State = iota + 1
	SynSent
	SynRecv // a full socket: simultaneous open or TCP Fast Open
	FinWait1
	FinWait2
	TimeWait // or what is left of a socket in FIN_WAIT2 that nobody holds any more
	Close
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv // a handshake that the listener has not completed
)

var stateNames = [...]string{
	Established: "ESTAB",
	SynSent:     "SYN-SENT",
	SynRecv:     "SYN-RECV",
	FinWait1:    "FIN-WAIT-1",
	FinWait2:    "FIN-WAIT-2",
	TimeWait:    "TIME-WAIT",
	Close:       "CLOSE",
	CloseWait:   "CLOSE-WAIT",
	LastAck:     "LAST-ACK",
	Listen:      "LISTEN",
	Closing:     "CLOSING",
	NewSynRecv:  "NEW-SYN-RECV",
}

// String is the name that ss(8) uses.
func (s State) String() string {
	if int(s) < len(stateNames) && stateNames[s] != "" {
		return stateNames[s]
	}
	return "STATE-" + strconv.Itoa(int(s))
}

// States is a set of states, for a Query.
func States(states ...State) uint32 {
	var mask uint32
	for _, s := range states {
		mask |= 1 << s
	}
	return mask
}

// openStates are those of a connection that can be destroyed.
var openStates = States(Established, SynSent, SynRecv, FinWait1, FinWait2, CloseWait, LastAck, Closing)

func (s State) in(mask uint32) bool { return s < 32 && mask&(1<<s) != 0 }
