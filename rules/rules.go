// Package rules owns the nftables table of curfew: it installs the table, changes it by difference, reads the policies
// back from it, keeps the reaper's heartbeat in it and removes it. It never touches another table.
//
// Every call opens its netlink socket in the calling thread's network namespace and needs CAP_NET_ADMIN there.
package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// TableName is the name of our table, of the family inet.
const TableName = "curfew"

// What can be wrong with the table.
var (
	// ErrNotInstalled says that there is no table of ours.
	ErrNotInstalled = errors.New("curfew is not installed here")
	// ErrForeign says that a table has our name and is not ours.
	ErrForeign = errors.New("table inet curfew was not made by curfew")
	// ErrDamaged says that the table was made by curfew, and has lost the notes that say what is in it.
	ErrDamaged = errors.New("table inet curfew was changed by somebody else and has lost its notes")
	// ErrFormat says that another version of curfew made the table.
	ErrFormat = errors.New("table inet curfew was made by another version of curfew")
)

// A Config is what the table should be.
type Config struct {
	Policies []ctpolicy.Policy
	// Defaults are the namespace's timeouts, for the states that a policy does not change.
	Defaults ctpolicy.Timeouts
	// RegisterSize is the number of flows that the fallback's register holds, for each of IPv4 and IPv6. That of an
	// installed table can't be changed.
	RegisterSize uint32
	// Mark is that of our challenges, which conntrack must not see.
	Mark uint32
	// Adopting keeps the rules that end unknown flows asleep for Heartbeat, until the flows that were open before are
	// known.
	Adopting bool
	// Adopt is for how long forwarded flows that conntrack does not know are picked up, before they are strays.
	Adopt time.Duration
	// Notes are added to those that the table keeps.
	Notes []string
}

// Heartbeat is how long the fallback sleeps after the last Beat.
const Heartbeat = 10 * time.Second

// The sets, maps and chains that are there whatever the policies are.
const (
	setAlive = "alive"
	setBeat  = "heartbeat"
	setAdopt = "adopt"
	setHeld  = "held"
	mapMatch = "match-by-port"
	mapEnd   = "end-by-port"
	// mapMatchReply is by the source port, for packets of servers.
	mapMatchReply = "match-reply-by-port"
	chainAbout    = "about"
	chainPolicies = "policies"
	chainState    = "state"
	chainProbe    = "probe"
)

// limitMap is the map from ports to the policies that cover a direction.
func limitMap(d ctpolicy.Direction) string { return string(d) + "-by-port" }

// The names of a policy's chains, sets and counters. Each has a suffix, so that no policy's name is a keyword of nft.
func matchChain(policy string, reversed bool) string {
	if reversed {
		return policy + "-match-reply"
	}
	return policy + "-match"
}
func limitChain(policy string) string { return policy + "-limit" }
func endChain(policy string) string   { return policy + "-end" }

func registerChain(policy string) string { return policy + "-register" }

// Counters of a policy, by what they count.
const (
	CountReset        = "reset"          // packets of pinned flows after their deadline
	CountFallback     = "fallback"       // packets that the register found overdue, without a reaper
	CountReported     = "reported"       // flows that the register found overdue in report mode, without a reaper
	CountReused       = "reused"         // SYNs that would have revived the entry of an earlier flow
	CountMaxPerSource = "max_per_source" // SYNs of clients with too many flows
	CountNewPerSource = "new_per_source" // SYNs of clients that open flows too fast
)

var countNames = []string{CountReset, CountFallback, CountReported, CountReused, CountMaxPerSource, CountNewPerSource}

// counts are the counters that a policy's rules use.
func counts(p *ctpolicy.Policy) (list []string) {
	switch {
	case p.Ends() && p.Enforced():
		list = append(list, CountReset, CountFallback, CountReused)
	case p.Ends():
		list = append(list, CountReported)
	}
	for _, l := range sourceLimits(p) {
		list = append(list, l.key)
	}
	return list
}

// counterStray counts packets of flows that conntrack does not know.
const counterStray = "stray"

func counterName(policy, count string) string { return policy + "-" + count }

// timeoutName holds the values, because an object that exists can't be changed without detaching its flows.
func timeoutName(policy string, t conntrack.Timeouts) string {
	return fmt.Sprintf("%s-%ds-%08x", policy, t[conntrack.TimeoutEstablished], hash(t))
}

func hash(t conntrack.Timeouts) uint32 {
	h := fnv.New32a()
	_ = binary.Write(h, binary.BigEndian, t[:]) // a hash takes everything
	return h.Sum32()
}

// library serializes the calls into google/nftables that use its global maps and counters.
var library sync.Mutex

var table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

// dial opens a connection with room for large transactions. It holds no socket until it is used.
func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		const size = 64 << 20
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) { bufferSizes(int(fd), size) })
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables netlink: %w", err)
	}
	return conn, nil
}

// bufferSizes forces the sizes where the process may, and else takes what it gets.
func bufferSizes(fd, size int) {
	for force, plain := range map[int]int{
		unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF,
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
		}
	}
}
