// Package ctpolicy says what a limit is: which flows a policy covers, how old a flow is, when its time is up and how
// long its conntrack entry may live. Everything here is a pure function of flows, policies and time. Its door to the
// kernel is the package conntrack below it.
package ctpolicy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

const (
	// Window is how long a pinned entry lasts, and the reject rule answers, after a deadline. A reaper that was away
	// for longer, or a timer that fires less often, would not find the entry of an idle flow any more.
	Window = 5 * time.Minute
	// MaxLimit is the longest limit that a policy may have.
	MaxLimit = 365 * 24 * time.Hour
	// maxLead bounds the time for which the reaper may be dead without a pinned flow overstaying.
	maxLead = 10 * time.Minute
	// minLead leaves time for a pin, which is sent whole seconds before the deadline.
	minLead = 1500 * time.Millisecond
	// maxName leaves room for the suffixes of chain and counter names (NFT_NAME_MAXLEN is 256) and for comments of
	// 128 bytes.
	maxName = 32
)

// A Policy limits the lifetime of the flows that it covers. Addresses and ports are those of the original tuple, as the
// client dials them.
type Policy struct {
	// Name is used in the table's chains, counters and comments.
	Name string
	// Ports are the destination ports as the client dials them.
	Ports []PortRange
	// Direction is where the ends of the flows are.
	Direction Direction
	// From are the clients, and To the servers as the clients dial them; none means all.
	From, To Prefixes
	// Except are clients and servers whose flows are left alone.
	Except Prefixes
	// MaxAge is the longest life of a flow, in whole seconds; 0 means no such limit.
	MaxAge time.Duration
	// Idle is the longest pause of a flow, in whole seconds; 0 means no such limit.
	Idle time.Duration
}

// Lead is how long before its deadline a flow of this policy is scheduled and pinned.
func (p *Policy) Lead() time.Duration {
	lead := maxLead
	for _, limit := range []time.Duration{p.MaxAge, p.Idle} {
		if limit > 0 {
			lead = min(lead, limit/2)
		}
	}
	return max(lead, minLead)
}

// Addresses tells whether the policy covers some addresses only.
func (p *Policy) Addresses() bool { return len(p.From)+len(p.To)+len(p.Except) > 0 }

// String is the policy's limits as a person types them: "max_age 1h, idle 10m, direction forwarded".
func (p *Policy) String() string {
	var parts []string
	if p.MaxAge > 0 {
		parts = append(parts, string(CauseMaxAge)+" "+FormatDuration(p.MaxAge))
	}
	if p.Idle > 0 {
		parts = append(parts, string(CauseIdle)+" "+FormatDuration(p.Idle))
	}
	return strings.Join(p.Direction.appendTo(parts), ", ")
}

// nameSyntax is what nft takes as the start of an identifier, and what reads well in a chain's name.
var nameSyntax = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// Validate reports everything that is wrong with the policy itself.
func (p *Policy) Validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !nameSyntax.MatchString(p.Name) || len(p.Name) > maxName {
		wrong("name %q: must start with a letter, go on with letters, digits, '_', '.' or '-', and have at most %d characters", p.Name, maxName)
	}
	if len(p.Ports) == 0 {
		wrong("no port given: name the ports to cover, for example --port 389,636")
	}
	if p.MaxAge == 0 && p.Idle == 0 {
		wrong("no limit given: set --max-age, --idle or both")
	}
	if err := checkLimit(p.MaxAge); err != nil && p.MaxAge != 0 {
		wrong("max_age %s: %w", p.MaxAge, err)
	}
	if err := checkLimit(p.Idle); err != nil && p.Idle != 0 {
		wrong("idle %s: %w", p.Idle, err)
	}
	return errors.Join(errs...)
}

// Validate reports every policy that is wrong, and every name or port that two policies share.
func Validate(policies []Policy) error {
	var errs []error
	names := map[string]bool{}
	for i := range policies {
		p := &policies[i]
		if err := p.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("policy %q: %w", p.Name, err))
		}
		if names[p.Name] {
			errs = append(errs, fmt.Errorf("policy %q: another policy has this name; give each its own --name", p.Name))
		}
		names[p.Name] = true
		for j := range policies[:i] {
			if r, ok := overlap(policies[j].Ports, p.Ports); ok {
				errs = append(errs, fmt.Errorf("policy %q: port %s is already covered by policy %q", p.Name, r, policies[j].Name))
			}
		}
	}
	return errors.Join(errs...)
}

// ParseLimits reads what String wrote, into a policy without name, ports and addresses.
func ParseLimits(s string) (p Policy, err error) {
	for part := range strings.SplitSeq(s, ", ") {
		key, value, _ := strings.Cut(part, " ")
		switch key {
		case string(CauseMaxAge):
			p.MaxAge, err = ParseLimit(value)
		case string(CauseIdle):
			p.Idle, err = ParseLimit(value)
		case keyDirection:
			p.Direction, err = ParseDirection(value)
		default:
			err = fmt.Errorf("%q is not a limit", key)
		}
		if err != nil {
			return Policy{}, err
		}
	}
	return p, nil
}
