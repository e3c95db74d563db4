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

func (c *chain) add(words ...exprs) { c.rules = append(c.rules, rule{exprs: join(words...)}) }

// The priorities at which we look at packets.
const (
	// Matching must come after conntrack (-200) and before destination NAT (-100): there the packet's addresses are
	// the original tuple.
	priorityMatch = -150 // mangle
	// Limiting comes before the filter chains of others, so that a packet they accept is still judged, and after
	// destination NAT, so that the hook tells the direction.
	priorityLimit = -10 // filter - 10
	// Our challenges must be marked as untracked before conntrack sees them.
	priorityProbe = -300 // raw
)

// chains is the whole table for a configuration, without the notes.
func chains(c *Config) []chain {
	list := matchChains(c.Policies)
	for i := range c.Policies {
		p := &c.Policies[i]
		list = append(list, limitChainOf(p, p.Timeouts(c.Defaults)))
	}
	return append(list, inputChain(), forwardChain(), outputChain(), probeChain(c.Mark))
}

// established is the packets of open flows that are not pinned: nearly all.
func established() exprs {
	return join(ctState(expr.CtStateBitESTABLISHED), ctStatus(conntrack.StatusFixedTimeout, 0))
}

// newInMidFlow is the packets that make conntrack pick up a flow without having seen its handshake.
func newInMidFlow() exprs { return join(ctState(expr.CtStateBitNEW), tcpFlags(tcpSyn, 0)) }

// overdue is the packets of flows that were pinned, after their deadline: a pinned entry counts down to its deadline plus
// the window, whatever its packets do.
func overdue() exprs {
	return join(ctStatusIsNot(conntrack.StatusFixedTimeout, 0), ctExpires(ctpolicy.Window))
}

// baseChain begins a hook's chain. While a reaper is alive nearly every packet leaves at its second rule; without one
// those from the server leave at the third. RST passes always: it is how an end learns that the other one is gone. It is
// noted who is being reset after the deadline, and who sends a reset: that end has closed.
func baseChain(name string, hook *nftables.ChainHook) chain {
	c := chain{name: name, hook: hook, priority: priorityLimit}
	c.add(notTCP(), accept())
	c.add(established(), tcpFlags(tcpSyn|tcpReset, 0), during(setAlive), accept())
	c.add(established(), ctReply(), accept())
	note := func() {
		for i := range families {
			c.add(overdue(), families[i].update(closedSet(&families[i]), ctpolicy.Window))
		}
	}
	if hook == nftables.ChainHookOutput { // there the resets are those that our rules send, in the name of the other end
		c.add(tcpFlags(tcpReset, tcpReset), accept())
		note()
	} else {
		note()
		c.add(tcpFlags(tcpReset, tcpReset), accept())
	}
	c.add(newInMidFlow(), portsIn(setHeld), drop())
	return c
}

// straysUnless ends flows that are covered, and that conntrack does not know: their entry has expired. It comes after the
// policies, which have labelled the flow.
func (c *chain) straysUnless(set string) {
	c.add(newInMidFlow(), ctLabel(ctpolicy.LabelTracked), unlessDuring(set), countReset(counterStray))
}

// inputChain sees what comes for this host: from clients of its servers, and from servers of its clients. What comes over
// loopback has been at output.
func inputChain() chain {
	c := baseChain("input", nftables.ChainHookInput)
	c.add(fromLoopback(), accept())
	c.add(ctOriginal(), vmapOriginalPort(limitMap(ctpolicy.Inbound)))
	c.add(ctReply(), vmapOriginalPort(limitMap(ctpolicy.Outbound)))
	c.straysUnless(setAlive) // a reaper finds the sockets of this host, whether conntrack knows them or not
	return c
}

// outputChain sees the opposite. A flow over loopback is inbound; only here it has an entry that can still get a ct timeout
// object.
func outputChain() chain {
	c := baseChain("output", nftables.ChainHookOutput)
	c.add(ctOriginal(), toHere(false), vmapOriginalPort(limitMap(ctpolicy.Inbound)))
	c.add(ctOriginal(), toHere(true), vmapOriginalPort(limitMap(ctpolicy.Outbound)))
	c.add(ctReply(), vmapOriginalPort(limitMap(ctpolicy.Inbound)))
	c.straysUnless(setAlive)
	return c
}

func forwardChain() chain {
	c := baseChain("forward", nftables.ChainHookForward)
	c.add(vmapOriginalPort(limitMap(ctpolicy.Forwarded)))
	c.straysUnless(setAdopt)
	return c
}

// matchChains label new flows whose addresses are those of a policy. They are the only ones that see the destination as
// the client dials it, and they are not there when no policy needs them.
func matchChains(policies []ctpolicy.Policy) []chain {
	var list []chain
	for i := range policies {
		if policies[i].Addresses() {
			list = append(list, matchChainOf(&policies[i]))
		}
	}
	if list == nil {
		return nil
	}
	return append(list, matchAt("match-prerouting", nftables.ChainHookPrerouting), matchAt("match-output", nftables.ChainHookOutput))
}

func matchAt(name string, hook *nftables.ChainHook) chain {
	c := chain{name: name, hook: hook, priority: priorityMatch}
	c.add(ctState(expr.CtStateBitNEW), isTCP(), vmapPort(mapMatch))
	return c
}

func matchChainOf(p *ctpolicy.Policy) chain {
	c := chain{name: matchChain(p.Name)}
	for i := range families {
		f := &families[i]
		for _, s := range addressSets(p) {
			c.match(f, &s)
		}
	}
	c.add(setCtLabel(ctpolicy.LabelCovered))
	return c
}

// match leaves the chain when the set says so. A family without prefixes has no set.
func (c *chain) match(f *family, s *addressSet) {
	none := len(s.prefixes.Family(f.nfproto == nfprotoIPv4)) == 0
	if none && s.wanted && len(s.prefixes) > 0 {
		c.add(f.is(), leave())
	}
	if none {
		return
	}
	for _, offset := range s.offsets(f) {
		c.add(f.lookup(offset, s.name(f), s.wanted), leave())
	}
}

// registerSlack makes up for the fractions of a jiffy that the kernel cuts from an element's timeout. It is whole jiffies at
// every HZ.
const registerSlack = 20 * time.Millisecond

// closeTimeout is how long a closed flow's entry may still be there without our ct timeout object (the default of
// nf_conntrack_tcp_timeout_close).
const closeTimeout = 10 * time.Second

// limitChainOf ends flows, and takes in new ones. A SYN that would revive the entry of an earlier flow, and so inherit its
// age, is refused: the entry is gone in a moment.
func limitChainOf(p *ctpolicy.Policy, timeouts conntrack.Timeouts) chain {
	pinned := ctStatusIsNot(conntrack.StatusFixedTimeout, 0)
	refuse := countReset(counterName(p.Name, CountRefused))
	revived := join(syn(), ctState(expr.CtStateBitESTABLISHED))
	c := chain{name: limitChain(p.Name)}
	c.rules = []rule{{join(isTCP(), overdue(), countReset(counterName(p.Name, CountReset))), p.String()}}
	c.add(syn(), pinned, refuse)
	if p.Addresses() {
		c.add(ctLabelUnset(ctpolicy.LabelCovered), leave())
	}
	c.add(revived, ctLabel(ctpolicy.LabelTracked), ctExpires(time.Second), refuse)
	c.add(revived, ctLabelUnset(ctpolicy.LabelTracked), ctExpires(closeTimeout), refuse)
	c.add(ctState(expr.CtStateBitNEW), setCtTimeout(timeoutName(p.Name, timeouts)), setCtLabel(ctpolicy.LabelTracked), taken(p))
	c.register(p)
	return c
}

// taken ends the way of a flow's first packet. Where entries don't outlive their flows, one in mid-flow is no stray.
func taken(p *ctpolicy.Policy) exprs {
	if p.Outlived() {
		return leave()
	}
	return accept()
}

// register keeps the fallback's register: an open flow is entered once, for max_age; when its element is gone its time is
// up. Registering at the SYN would let a SYN flood fill it, and `update`, not `add`, gives a new flow from the same port its
// full time.
func (c *chain) register(p *ctpolicy.Policy) {
	if p.MaxAge == 0 {
		return
	}
	const open = conntrack.StatusAssured
	c.add(ctStatusIsNot(open|conntrack.StatusFixedTimeout, open), leave())
	for i := range families {
		set := flowsSet(&families[i])
		c.add(ctLabelUnset(ctpolicy.LabelRegistered), families[i].update(set, p.MaxAge+registerSlack), setCtLabel(ctpolicy.LabelRegistered))
		c.add(ctLabel(ctpolicy.LabelRegistered), families[i].missing(set), countReset(counterName(p.Name, CountFallback)))
	}
}

// probeChain keeps our challenges away from conntrack and NAT.
func probeChain(mark uint32) chain {
	c := chain{name: chainProbe, hook: nftables.ChainHookOutput, priority: priorityProbe}
	c.add(exprs{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, equal(native32(mark)), &expr.Notrack{}})
	return c
}
