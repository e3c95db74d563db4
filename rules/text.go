package rules

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy/conntrack"
)

// Text is the table for a configuration as `nft list table inet curfew` prints it, each element on a line of its own: what
// Apply would install where there is none. The elements that come and go are left out.
func Text(c Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	blocks := objectTexts(&c)
	for _, set := range wantedSets(&c) {
		blocks = append(blocks, set.block())
	}
	about := chain{name: chainAbout}
	for _, note := range append([]string{format}, c.Notes...) {
		about.rules = append(about.rules, rule{leave(), note})
	}
	blocks = append(blocks, about.block())
	for _, one := range chains(&c) {
		blocks = append(blocks, one.block())
	}
	b.WriteString(strings.Join(blocks, "\n"))
	b.WriteString("}\n")
	return b.String()
}

func objectTexts(c *Config) (blocks []string) {
	counter := func(name string) {
		blocks = append(blocks, fmt.Sprintf("\tcounter %s {\n\t\tpackets 0 bytes 0\n\t}\n", name))
	}
	counter(counterStray)
	for i := range c.Policies {
		p := &c.Policies[i]
		for _, count := range counts(p) {
			counter(counterName(p.Name, count))
		}
		if p.Ends() && p.Enforced() {
			blocks = append(blocks, timeoutText(p.Name, p.Timeouts(c.Defaults)))
		}
	}
	return blocks
}

// timeoutText leaves out the values that nft takes for the kernel's own.
func timeoutText(policy string, t conntrack.Timeouts) string {
	var values []string
	usual := conntrack.DefaultTimeouts()
	for state, seconds := range t {
		if seconds != usual[state] {
			values = append(values, fmt.Sprintf("%s : %d", conntrack.TimeoutName(state), seconds))
		}
	}
	return fmt.Sprintf("\tct timeout %s {\n\t\tprotocol tcp\n\t\tl3proto inet\n\t\tpolicy = { %s }\n\t}\n",
		timeoutName(policy, t), strings.Join(values, ", "))
}

func (s *filledSet) block() string {
	kind, typ := "set", nftTypes(s.KeyType)
	if s.IsMap {
		kind, typ = "map", typ+" : verdict"
	}
	lines := []string{"type " + typ}
	if s.Size > 0 {
		lines = append(lines, fmt.Sprintf("size %d", s.Size))
	}
	if flags := s.flags(); flags != "" {
		lines = append(lines, "flags "+flags)
	}
	if s.Comment != "" {
		lines = append(lines, fmt.Sprintf("comment %q", s.Comment))
	}
	if len(s.text) > 0 {
		lines = append(lines, fmt.Sprintf("elements = { %s }", strings.Join(s.text, ",\n\t\t\t     ")))
	}
	return block(kind+" "+s.Name, lines)
}

func (s *filledSet) flags() string {
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{{s.Interval, "interval"}, {s.Dynamic, "dynamic"}, {s.HasTimeout, "timeout"}} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	return strings.Join(flags, ",")
}

// nftTypes names the parts of a key. The library joins their names with a full stop only.
func nftTypes(t nftables.SetDatatype) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(t.Name, ".", " . ")), " ")
}

func (c *chain) block() string {
	var lines []string
	if c.hook != nil {
		lines = append(lines, fmt.Sprintf("type filter hook %s priority %s; policy accept;", hookName(*c.hook), priorityName(c.priority)))
	}
	for _, r := range c.rules {
		line := r.text
		if r.comment != "" {
			line += fmt.Sprintf(" comment %q", r.comment)
		}
		lines = append(lines, line)
	}
	return block("chain "+c.name, lines)
}

func block(head string, lines []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\t%s {\n", head)
	for _, line := range lines {
		fmt.Fprintf(&b, "\t\t%s\n", line)
	}
	b.WriteString("\t}\n")
	return b.String()
}

func hookName(hook nftables.ChainHook) string {
	return map[nftables.ChainHook]string{
		unix.NF_INET_PRE_ROUTING: "prerouting", unix.NF_INET_LOCAL_IN: "input", unix.NF_INET_FORWARD: "forward",
		unix.NF_INET_LOCAL_OUT: "output",
	}[hook]
}

func priorityName(p nftables.ChainPriority) string {
	return map[nftables.ChainPriority]string{priorityEnd: "mangle", priorityLimit: "filter - 10", priorityProbe: "raw"}[p]
}

// Diff is what Apply would change, as a unified diff of nft's text; empty for no change. Counters and what the rules have
// filled stay as they are.
func Diff(old *Installed, c Config) string {
	before := ""
	if old != nil {
		before = Text(Config{Policies: old.Policies, Defaults: c.Defaults, RegisterSize: old.RegisterSize, Mark: old.Mark, Notes: c.Notes})
	}
	return string(diff.Diff("installed", []byte(before), "wanted", []byte(Text(c))))
}
