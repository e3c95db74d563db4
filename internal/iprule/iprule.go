// Package iprule reads the rules of policy routing, as `ip rule` lists them.
package iprule

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// struct fib_rule_hdr of linux/fib_rules.h. Its numbers and those in attributes are in the host's byte order.
const (
	headerSize = 12
	flagsAt    = 8
)

const (
	receiveBuffer = 1 << 20
	dumpAttempts  = 5
)

// A rule is what it says about marks.
type rule struct {
	family     uint8
	priority   uint32
	mark, mask uint32 // without a mask it is not about marks
	invert     bool
}

// MarkUsers describes the rules of the calling thread's network namespace that tell a packet with the mark from one
// without a mark, as "ip rule 100 (fwmark 0x2/0x2)" or "ip -6 rule …": the two may be routed differently. All else
// that a rule asks for is taken to hold. Where the kernel has no policy routing there are none. It needs no privilege.
func MarkUsers(mark uint32) ([]string, error) {
	conn, err := nl.Dial(unix.NETLINK_ROUTE, receiveBuffer)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var users []string
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		rules, err := list(conn.Dump, family)
		if err != nil {
			return nil, fmt.Errorf("list the rules of policy routing: %w", err)
		}
		for _, r := range rules {
			if r.holds(mark) != r.holds(0) {
				users = append(users, r.String())
			}
		}
	}
	return users, nil
}

// dump sends a dump request, as nl.Conn.Dump does.
type dump func(request []byte, fn nl.Handler) error

// list reads a family's rules. A kernel without policy routing answers EOPNOTSUPP, and EAFNOSUPPORT when it has it for
// other families only (fib_nl_dumprule in net/core/fib_rules.c).
func list(dump dump, family uint8) (rules []rule, err error) {
	request := append(nl.AppendHeader(nil, unix.RTM_GETRULE, 0), make([]byte, headerSize)...)
	request[unix.NLMSG_HDRLEN] = family
	for range dumpAttempts {
		rules = nil
		err = dump(request, func(_ uint16, payload []byte) error {
			r, err := parse(payload)
			rules = append(rules, r)
			return err
		})
		if !errors.Is(err, nl.ErrInterrupted) {
			break
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil
	}
	return rules, err
}

func parse(payload []byte) (r rule, err error) {
	if len(payload) < headerSize {
		return r, nl.ErrMalformed
	}
	r.family = payload[0]
	r.invert = binary.NativeEndian.Uint32(payload[flagsAt:])&unix.FIB_RULE_INVERT != 0
	a := nl.ParseAttrs(payload[headerSize:])
	for a.Next() {
		switch a.Type() {
		case unix.FRA_PRIORITY:
			r.priority = binary.NativeEndian.Uint32(a.Take(4))
		case unix.FRA_FWMARK:
			r.mark = binary.NativeEndian.Uint32(a.Take(4))
		case unix.FRA_FWMASK:
			r.mask = binary.NativeEndian.Uint32(a.Take(4))
		}
	}
	return r, a.Err()
}

// holds is fib_rule_match of the kernel, for the mark alone.
func (r rule) holds(mark uint32) bool { return (mark&r.mask == r.mark&r.mask) != r.invert }

func (r rule) String() string {
	name, not := "ip rule", ""
	if r.family == unix.AF_INET6 {
		name = "ip -6 rule"
	}
	if r.invert {
		not = "not "
	}
	return fmt.Sprintf("%s %d (%sfwmark %#x/%#x)", name, r.priority, not, r.mark, r.mask)
}
