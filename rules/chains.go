package rules

import (
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A chain is one chain of the table with its rules.
type chain struct {
	name     string
	hook     *nftables.ChainHook // nil: reached by jumps only
	priority nftables.ChainPriority
	rules    []rule
}

type rule struct {
	exprs   exprs
	comment string
}

// The priorities at which we look at packets.
const (
	// Tracking must come after conntrack (-200) and before destination NAT (-100): there the packet's addresses are
	// the original tuple.
	priorityTrack = -150 // mangle
	// Enforcing comes before the filter chains of others, so that a packet they accept is still judged.
	priorityEnforce = -10 // filter - 10
	// Our challenges must be marked as untracked before conntrack sees them.
	priorityProbe = -300 // raw
)

// chains is the whole table for a configuration, without the notes.
func chains(c *Config) []chain {
	list := []chain{trackChainOf()}
	for i := range c.Policies {
		p := &c.Policies[i]
		list = append(list, trackPolicy(p, p.Timeouts(c.Defaults)))
	}
	list = append(list, enforceChainOf())
	for i := range c.Policies {
		list = append(list, enforcePolicy(&c.Policies[i]))
	}
	jumpTo := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority, target string) {
		list = append(list, chain{name, hook, priority, []rule{{exprs: jump(target)}}})
	}
	jumpTo("track-prerouting", nftables.ChainHookPrerouting, priorityTrack, chainTrack)
	jumpTo("track-output", nftables.ChainHookOutput, priorityTrack, chainTrack)
	jumpTo("input", nftables.ChainHookInput, priorityEnforce, chainEnforce)
	jumpTo("forward", nftables.ChainHookForward, priorityEnforce, chainEnforce)
	jumpTo("output", nftables.ChainHookOutput, priorityEnforce, chainEnforce)
	return append(list, probeChain(c.Mark))
}

// trackChainOf sends packets to their policy's register. While a reaper is alive only a flow's first packet goes there,
// for its ct timeout object.
func trackChainOf() chain {
	return chain{name: chainTrack, rules: []rule{
		{exprs: join(ctStateIsNot(expr.CtStateBitNEW), alive(false), leave())},
		{exprs: join(isTCP(), ctOriginal(), vmapPort(mapTrack))},
	}}
}

// registerSlack makes up for the fractions of a jiffy that the kernel cuts from an element's timeout. It is whole jiffies at
// every HZ.
const registerSlack = 20 * time.Millisecond

// trackPolicy gives new flows their ct timeout object, and keeps the fallback's register: an open flow is entered once,
// for max_age; when its element is gone its time is up. Registering at the SYN would let a SYN flood fill it, and
// `update`, not `add`, gives a new flow from the same port its full time. A packet with RST is let through, or the
// other end would not be told.
func trackPolicy(p *ctpolicy.Policy, timeouts conntrack.Timeouts) chain {
	c := chain{name: trackChain(p.Name), rules: []rule{{exprs: join(
		ctState(expr.CtStateBitNEW), setCtTimeout(timeoutName(p.Name, timeouts)), setCtLabel(ctpolicy.LabelTracked))}}}
	if p.MaxAge == 0 {
		return c
	}
	const open = conntrack.StatusAssured
	c.rules = append(c.rules,
		rule{exprs: join(ctStatusIsNot(open|conntrack.StatusFixedTimeout, open), leave())},
		rule{exprs: join(tcpFlags(tcpReset, tcpReset), leave())},
	)
	for i := range registers {
		r := &registers[i]
		c.rules = append(c.rules,
			rule{exprs: join(ctLabelUnset(ctpolicy.LabelRegistered), r.update(p.MaxAge+registerSlack), setCtLabel(ctpolicy.LabelRegistered))},
			rule{exprs: join(ctLabel(ctpolicy.LabelRegistered), r.missing(), countReset(counterName(p.Name, CountFallback)))},
		)
	}
	return c
}

// enforceChainOf lets nearly every packet leave at once: those of established flows that are not pinned. RST passes
// always: it is how an end learns that the other one is gone.
func enforceChainOf() chain {
	return chain{name: chainEnforce, rules: []rule{
		{exprs: join(notTCP(), leave())},
		{exprs: join(ctState(expr.CtStateBitESTABLISHED), ctStatus(conntrack.StatusFixedTimeout, 0),
			tcpFlags(tcpSyn|tcpReset, 0), leave())},
		{exprs: join(tcpFlags(tcpReset, tcpReset), leave())},
		{exprs: vmapOriginalPort(mapEnforce)},
	}}
}

// closeTimeout is how long a closed flow's entry may still be there without our ct timeout object (the default of
// nf_conntrack_tcp_timeout_close).
const closeTimeout = 10 * time.Second

// enforcePolicy ends flows. A pinned entry counts down to its deadline plus the window, whatever its packets do. A SYN
// that would revive the entry of an earlier flow, and so inherit its age, is refused: the entry is gone in a moment.
// Without a reaper, a packet in mid-flow that conntrack does not know belongs to a flow whose entry has expired.
func enforcePolicy(p *ctpolicy.Policy) chain {
	pinned := ctStatusIsNot(conntrack.StatusFixedTimeout, 0)
	refuse := countReset(counterName(p.Name, CountRefused))
	established := ctState(expr.CtStateBitESTABLISHED)
	c := chain{name: enforceChain(p.Name), rules: []rule{
		{
			exprs:   join(isTCP(), pinned, ctExpires(ctpolicy.Window), countReset(counterName(p.Name, CountReset))),
			comment: p.String(),
		},
		{exprs: join(syn(), pinned, refuse)},
		{exprs: join(syn(), established, ctLabel(ctpolicy.LabelTracked), ctExpires(time.Second), refuse)},
		{exprs: join(syn(), established, ctLabelUnset(ctpolicy.LabelTracked), ctExpires(closeTimeout), refuse)},
	}}
	if p.Outlived() {
		c.rules = append(c.rules, rule{exprs: join(
			ctState(expr.CtStateBitNEW), tcpFlags(tcpSyn, 0), alive(true), countReset(counterName(p.Name, CountStray)))})
	}
	return c
}

// probeChain keeps our challenges away from conntrack and NAT.
func probeChain(mark uint32) chain {
	return chain{name: chainProbe, hook: nftables.ChainHookOutput, priority: priorityProbe, rules: []rule{{exprs: exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, equal(native32(mark)), &expr.Notrack{},
	}}}}
}
