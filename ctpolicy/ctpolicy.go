// Package ctpolicy says what a limit is: which flows a policy covers, how old a flow is, when its time is up and how
// long its conntrack entry may live. Everything here is a pure function of flows, policies and time. Its door to the
// kernel is the package conntrack below it.
package ctpolicy

import (
	"errors"
	"fmt"
	"regexp"
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
	// Jitter spreads the ends of flows: each lives 0 to this many percent of MaxAge longer.
	Jitter int
	// Grace is how long a flow that has reached MaxAge may go on until it pauses for a second, in whole seconds.
	Grace time.Duration
	// MaxPerSource is how many flows a client may have at once; 0 means no such limit.
	MaxPerSource uint32
	// NewPerSource is how many flows a client may open in a time.
	NewPerSource SourceRate
	// SourcePrefix6 is the length of the prefix that counts as one client over IPv6; 0 means DefaultSourcePrefix6.
	SourcePrefix6 int
	// Refuse is what the client of a flow too many gets.
	Refuse Refuse
	// Mode tells whether flows are ended and refused, or only reported.
	Mode Mode
	// Rate is how many flows are ended in a second at most; 0 means no such limit.
	Rate uint32
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

// Ends tells whether the policy limits the lifetime of its flows.
func (p *Policy) Ends() bool { return p.MaxAge > 0 || p.Idle > 0 }

// Enforced tells whether flows are ended and refused, and not only reported.
func (p *Policy) Enforced() bool { return p.Mode != Report }

// LastAge is the greatest age that a flow may reach, and 0 without max_age.
func (p *Policy) LastAge() time.Duration {
	if p.MaxAge == 0 {
		return 0
	}
	return p.MaxAge + p.MaxAge*time.Duration(p.Jitter)/100 + p.Grace
}

// nameSyntax is what nft takes as the start of an identifier, and what reads well in a chain's name.
var nameSyntax = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// A Problem is something wrong with one key of a policy.
type Problem struct {
	Key string // "" for the policy as a whole
	Err error
}

// Problems is everything that is wrong with the policy itself.
func (p *Policy) Problems() (list []Problem) {
	wrong := func(key, format string, args ...any) {
		list = append(list, Problem{key, fmt.Errorf(format, args...)})
	}
	if err := p.nameProblem(); err != nil {
		wrong("name", "name %w", err)
	}
	if len(p.Ports) == 0 {
		wrong("", "no port given: name the ports to cover, for example 389,636")
	}
	if p.MaxAge == 0 && p.Idle == 0 && p.MaxPerSource == 0 && p.NewPerSource.Count == 0 {
		wrong("", "no limit given: set max_age, idle, max_per_source or new_per_source")
	}
	for _, limit := range []struct {
		key   string
		value time.Duration
	}{{"max_age", p.MaxAge}, {"idle", p.Idle}, {"grace", p.Grace}} {
		if err := checkLimit(limit.value); err != nil && limit.value != 0 {
			wrong(limit.key, "%s %s: %w", limit.key, limit.value, err)
		}
	}
	p.companions(wrong)
	return list
}

// companions finds keys that say nothing without another one.
func (p *Policy) companions(wrong func(key, format string, args ...any)) {
	perSource := p.MaxPerSource > 0 || p.NewPerSource.Count > 0
	for _, c := range []struct {
		key   string
		given bool
		needs string
		has   bool
	}{
		{"jitter", p.Jitter != 0, "max_age", p.MaxAge > 0},
		{"grace", p.Grace != 0, "max_age", p.MaxAge > 0},
		{"rate", p.Rate != 0, "max_age or idle", p.Ends()},
		{"refuse", p.Refuse != Reset, "max_per_source or new_per_source", perSource},
		{"source_prefix6", p.SourcePrefix6 != 0, "max_per_source or new_per_source", perSource},
	} {
		if c.given && !c.has {
			wrong(c.key, "%s says nothing without %s", c.key, c.needs)
		}
	}
}

// Validate reports everything that is wrong with the policy itself.
func (p *Policy) Validate() error {
	var errs []error
	for _, problem := range p.Problems() {
		errs = append(errs, problem.Err)
	}
	return errors.Join(errs...)
}

// Validate reports every policy that is wrong, and every Conflict. Where policies overlap, a flow belongs to the first one
// that matches.
func Validate(policies []Policy) error {
	var errs []error
	conflicts := Conflicts(policies)
	for i := range policies {
		p := &policies[i]
		if err := p.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("policy %q: %w", p.Name, err))
		}
		for ; len(conflicts) > 0 && conflicts[0].Policy == i; conflicts = conflicts[1:] {
			errs = append(errs, fmt.Errorf("policy %q: %w", p.Name, conflicts[0].Err))
		}
	}
	return errors.Join(errs...)
}
