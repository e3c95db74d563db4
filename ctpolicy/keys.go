package ctpolicy

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Key is one word of a policy: in the configuration file, on the command line (with '-' for '_') and in the table.
type Key struct {
	Name  string
	Usage string // its placeholder in backquotes
	List  bool   // the value may be a list, joined by commas
	// Syntax is a regular expression for a value, of a list for each part; Words are all values where there are few.
	Syntax  string
	Words   []string
	Example string // a value that Set takes
	// Get is the value as Set reads it, "" for one that is not set.
	Get func(p *Policy) string
	Set func(p *Policy, value string) error
}

// Keys are all words of a policy, in the order in which a person reads them.
var Keys = []Key{
	{
		Name: "name", Usage: "`NAME` of the policy in the table and the log (default: tcp-PORT)",
		Syntax: nameSyntax.String(), Example: "ldap",
		Get: func(p *Policy) string { return p.Name },
		Set: func(p *Policy, v string) error {
			p.Name = v
			return (&Policy{Name: v}).nameProblem()
		},
	},
	{
		Name: "port", Usage: "destination `PORTS` as clients dial them: 389,636,8000-8010,ldap", List: true,
		Syntax: `^[A-Za-z0-9._+-]+$`, Example: "389,636",
		Get: func(p *Policy) string { return FormatPorts(p.Ports) },
		Set: func(p *Policy, v string) (err error) {
			p.Ports, err = ParsePorts(v)
			return err
		},
	},
	durationKey("max_age", "end connections that are this old: `30s`, 15m, 1h30m, 7d", func(p *Policy) *time.Duration { return &p.MaxAge }),
	durationKey("idle", "end connections without a packet for this `TIME`", func(p *Policy) *time.Duration { return &p.Idle }),
	{
		Name: "jitter", Usage: "spread the ends of connections over this `PERCENT` of max-age, never before it: 10%",
		Syntax: `^[0-9]+%$`, Example: "10%",
		Get: func(p *Policy) string {
			if p.Jitter == 0 {
				return ""
			}
			return strconv.Itoa(p.Jitter) + "%"
		},
		Set: func(p *Policy, v string) (err error) {
			p.Jitter, err = parsePercent(v)
			return err
		},
	},
	durationKey("grace", "at max-age, wait up to this `TIME` for the connection's first pause of a second", func(p *Policy) *time.Duration { return &p.Grace }),
	{
		Name: "max_per_source", Usage: "refuse connections when a client has this `NUMBER` already",
		Syntax: `^[1-9][0-9]*$`, Example: "10",
		Get: func(p *Policy) string { return count(p.MaxPerSource) },
		Set: func(p *Policy, v string) (err error) {
			p.MaxPerSource, err = parseCount(v)
			return err
		},
	},
	{
		Name: "new_per_source", Usage: "refuse connections that a client opens faster than this `RATE`: \"15/minute burst 10\"",
		Syntax: `^[1-9][0-9]*/[a-z]+( +burst +[1-9][0-9]*)?$`, Example: "15/minute burst 10",
		Get: func(p *Policy) string { return p.NewPerSource.String() },
		Set: func(p *Policy, v string) (err error) {
			p.NewPerSource, err = ParseSourceRate(v)
			return err
		},
	},
	{
		Name: "source_prefix6", Usage: "`LENGTH` of the prefix that counts as one client over IPv6 (default: 64)",
		Syntax: `^/?[1-9][0-9]*$`, Example: "64",
		Get: func(p *Policy) string { return count(uint32(p.SourcePrefix6)) },
		Set: func(p *Policy, v string) (err error) {
			p.SourcePrefix6, err = parsePrefixLength(v)
			return err
		},
	},
	{
		Name: "refuse", Usage: "`HOW` to refuse a connection too many: reset or drop (default: reset)",
		Words: []string{"reset", string(Drop)}, Example: string(Drop),
		Get: func(p *Policy) string { return string(p.Refuse) },
		Set: func(p *Policy, v string) (err error) {
			p.Refuse, err = ParseRefuse(v)
			return err
		},
	},
	{
		Name: "mode", Usage: "`MODE`: enforce, or report to end and refuse nothing, but count and log it (default: enforce)",
		Words: []string{"enforce", string(Report)}, Example: string(Report),
		Get: func(p *Policy) string { return string(p.Mode) },
		Set: func(p *Policy, v string) (err error) {
			p.Mode, err = ParseMode(v)
			return err
		},
	},
	{
		Name: "rate", Usage: "end at most so many connections `PER-SECOND`, the rest later: 200/s",
		Syntax: `^[1-9][0-9]*/s(ec(ond)?)?$`, Example: "200/s",
		Get: func(p *Policy) string {
			if p.Rate == 0 {
				return ""
			}
			return count(p.Rate) + "/s"
		},
		Set: func(p *Policy, v string) (err error) {
			p.Rate, err = parseEndRate(v)
			return err
		},
	},
	{
		Name: "direction", Usage: "`DIRECTION` of the connections: any, inbound, outbound or forwarded (default: any)",
		Words: []string{"any", string(Inbound), string(Outbound), string(Forwarded)}, Example: string(Inbound),
		Get: func(p *Policy) string { return string(p.Direction) },
		Set: func(p *Policy, v string) (err error) {
			p.Direction, err = ParseDirection(v)
			return err
		},
	},
	prefixesKey("from", "only clients in these `PREFIXES`: 10.0.0.0/8,fd00::/8", func(p *Policy) *Prefixes { return &p.From }),
	prefixesKey("to", "only servers, as clients dial them, in these `PREFIXES`", func(p *Policy) *Prefixes { return &p.To }),
	prefixesKey("except", "leave clients and servers in these `PREFIXES` alone", func(p *Policy) *Prefixes { return &p.Except }),
}

func durationKey(name, usage string, field func(p *Policy) *time.Duration) Key {
	return Key{
		Name: name, Usage: usage,
		Syntax: `^[0-9.]+(d|h|m|s|ms)([0-9.]+(h|m|s|ms))*$`, Example: "1h",
		Get: func(p *Policy) string {
			if *field(p) == 0 {
				return ""
			}
			return FormatDuration(*field(p))
		},
		Set: func(p *Policy, v string) (err error) {
			*field(p), err = ParseLimit(v)
			return err
		},
	}
}

func prefixesKey(name, usage string, field func(p *Policy) *Prefixes) Key {
	return Key{
		Name: name, Usage: usage, List: true,
		Syntax: `^[0-9A-Fa-f.:]+(/[0-9]+)?$`, Example: "10.0.0.0/8",
		Get: func(p *Policy) string { return field(p).String() },
		Set: func(p *Policy, v string) (err error) {
			*field(p), err = ParsePrefixes(v)
			return err
		},
	}
}

// FindKey is the key of this name, or nil.
func FindKey(name string) *Key {
	for i := range Keys {
		if Keys[i].Name == name {
			return &Keys[i]
		}
	}
	return nil
}

// elsewhere are the keys that are not part of a policy's limits: the table shows them in other places.
var elsewhere = map[string]bool{"name": true, "port": true, "from": true, "to": true, "except": true}

// Limits are the policy's limits as a person types them: "max_age 1h", "idle 10m", "direction forwarded".
func (p *Policy) Limits() (list []string) {
	for i := range Keys {
		k := &Keys[i]
		if value := k.Get(p); value != "" && !elsewhere[k.Name] {
			list = append(list, k.Name+" "+value)
		}
	}
	return list
}

// String joins the limits: "max_age 1h, idle 10m, direction forwarded".
func (p *Policy) String() string { return strings.Join(p.Limits(), ", ") }

// ParseLimits reads what String wrote, into a policy without name, ports and addresses.
func ParseLimits(s string) (p Policy, err error) {
	for part := range strings.SplitSeq(s, ", ") {
		name, value, _ := strings.Cut(part, " ")
		k := FindKey(name)
		if k == nil || elsewhere[name] {
			return Policy{}, fmt.Errorf("%q is not a limit", name)
		}
		if err := k.Set(&p, value); err != nil {
			return Policy{}, err
		}
	}
	return p, nil
}

// SetDefaultName names a policy without a name after its first port.
func (p *Policy) SetDefaultName() {
	if p.Name == "" && len(p.Ports) > 0 {
		p.Name = "tcp-" + p.Ports[0].String()
	}
}
