package rules

import (
	"slices"
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
	// Matching and ending must come after conntrack (-200) and before destination NAT (-100): there a packet has the
	// addresses that its sender knows.
	priorityEnd = -150 // mangle
	// Limiting comes before the filter chains of others, so that a packet they accept is still judged, and after
	// destination NAT, so that the hook tells the direction.
	priorityLimit = -10 // filter - 10
	// Our challenges must be marked as untracked before conntrack sees them.
	priorityProbe = -300 // raw
)

// chains is the whole table for a configuration, without the notes.
func chains(c *Config) []chain {
	var list []chain
	for i := range c.Policies {
		p := &c.Policies[i]
		if p.Addresses() {
			list = append(list, matchChainOf(p, false), matchChainOf(p, true))
		}
		list = append(list, limitChainOf(p, p.Timeouts(c.Defaults)), endChainOf(p))
	}
	addresses := slices.ContainsFunc(c.Policies, func(p ctpolicy.Policy) bool { return p.Addresses() })
	return append(list, endAt(nftables.ChainHookPrerouting, addresses), endAt(nftables.ChainHookOutput, addresses),
		inputChain(), forwardChain(), outputChain(), probeChain(c.Mark))
}

// unpinned is the packets of flows whose timeout is not fixed: nearly all.
func unpinned() exprs { return ctStatus(conntrack.StatusFixedTimeout, 0) }

// newInMidFlow is the packets that make conntrack pick up a flow without having seen its handshake.
func newInMidFlow() exprs { return join(ctState(expr.CtStateBitNEW), tcpFlags(tcpSyn, 0)) }

// overdue is the packets of flows that were pinned, after their deadline: a pinned entry counts down to its deadline plus
// the window, whatever its packets do.
func overdue() exprs {
	return join(ctStatusIsNot(conntrack.StatusFixedTimeout, 0), ctExpires(ctpolicy.Window))
}

// endAt is where flows end: before NAT, so that the reset goes to the sender with the addresses that it knows. That of a
// packet which is bridged (br_netfilter) never meets NAT on its way back (nf_send_reset). While a reaper is alive nearly
// every packet leaves at once; without one those from the server leave next.
func endAt(hook *nftables.ChainHook, addresses bool) chain {
	c := chain{name: "end-prerouting", hook: hook, priority: priorityEnd}
	if hook == nftables.ChainHookOutput {
		c.name = "end-output"
	}
	if addresses {
		c.add(ctState(expr.CtStateBitNEW), isTCP(), vmapPort(mapMatch))
	}
	if addresses && hook == nftables.ChainHookPrerouting {
		c.add(newInMidFlow(), toClient(), vmapSourcePort(mapMatchReply))
	}
	c.add(unpinned(), during(setAlive), accept())
	c.add(unpinned(), ctReply(), accept())
	if hook == nftables.ChainHookPrerouting {
		c.add(fromLoopback(), accept()) // it has been at output; also the resets that our rules send to this host
	}
	c.letResetsPass(hook)
	c.add(ctState(expr.CtStateBitESTABLISHED), vmapOriginalPort(mapEnd))
	return c
}

// letResetsPass lets RST pass: it is how an end learns that the other one is gone. It is noted who is being reset after the
// deadline, and who sends a reset: that end has closed. At output resets are not noted: they are those that our rules
// send, in the name of the other end.
func (c *chain) letResetsPass(hook *nftables.ChainHook) {
	pass := func() { c.add(tcpFlags(tcpReset, tcpReset), accept()) }
	if hook == nftables.ChainHookOutput {
		pass()
	} else {
		defer pass()
	}
	for i := range families {
		c.add(overdue(), families[i].update(closedSet(&families[i]), ctpolicy.Window))
	}
}

// limitAt begins the chain of a hook that takes in new flows.
func limitAt(name string, hook *nftables.ChainHook) chain {
	c := chain{name: name, hook: hook, priority: priorityLimit}
	c.add(notTCP(), accept())
	c.add(ctStateIsNot(expr.CtStateBitNEW), tcpFlags(tcpSyn, 0), accept())
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
	c := limitAt("input", nftables.ChainHookInput)
	c.add(fromLoopback(), accept())
	c.add(ctOriginal(), vmapOriginalPort(limitMap(ctpolicy.Inbound)))
	c.straysUnless(setAlive) // a reaper finds the sockets of this host, whether conntrack knows them or not
	return c
}

// outputChain sees what this host sends first. A flow over loopback is inbound; only here it has an entry that can still
// get a ct timeout object.
func outputChain() chain {
	c := limitAt("output", nftables.ChainHookOutput)
	c.add(ctOriginal(), toHere(false), vmapOriginalPort(limitMap(ctpolicy.Inbound)))
	c.add(ctOriginal(), toHere(true), vmapOriginalPort(limitMap(ctpolicy.Outbound)))
	c.straysUnless(setAlive)
	return c
}

// forwardChain also knows strays that the server sends. Conntrack takes it for the client.
func forwardChain() chain {
	c := limitAt("forward", nftables.ChainHookForward)
	c.add(ctOriginal(), vmapOriginalPort(limitMap(ctpolicy.Forwarded)))
	c.add(newInMidFlow(), ctLabelUnset(ctpolicy.LabelTracked), unlessDuring(setAdopt), toClient(), vmapSourcePort(limitMap(ctpolicy.Forwarded)))
	c.straysUnless(setAdopt)
	return c
}

// matchChainOf labels new flows whose addresses are those of the policy, where they are still as the client dials them. The
// reversed one is for strays that the server sends.
func matchChainOf(p *ctpolicy.Policy, reversed bool) chain {
	c := chain{name: matchChain(p.Name, reversed)}
	for i := range families {
		f := families[i]
		if reversed {
			f.source, f.dest = f.dest, f.source
		}
		for _, s := range addressSets(p) {
			c.match(&f, &s)
		}
	}
	c.add(setCtLabel(ctpolicy.LabelMatched))
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

// limitChainOf takes in new flows. A SYN that would revive the entry of an earlier flow, and so inherit its age, is
// refused: the entry is gone in a moment.
func limitChainOf(p *ctpolicy.Policy, timeouts conntrack.Timeouts) chain {
	refuse := countReset(counterName(p.Name, CountRefused))
	revived := join(syn(), ctState(expr.CtStateBitESTABLISHED))
	c := chain{name: limitChain(p.Name)}
	if p.Addresses() {
		c.add(ctLabelUnset(ctpolicy.LabelMatched), leave())
	}
	c.add(revived, ctLabel(ctpolicy.LabelTracked), ctExpires(time.Second), refuse)
	c.add(revived, ctLabelUnset(ctpolicy.LabelTracked), ctExpires(closeTimeout), refuse)
	c.add(ctState(expr.CtStateBitNEW), setCtTimeout(timeoutName(p.Name, timeouts)), setCtLabel(ctpolicy.LabelCovered),
		setCtLabel(ctpolicy.LabelTracked), taken(p))
	return c
}

// endChainOf ends flows: those that are pinned, and without a reaper those whose time in the register is over.
func endChainOf(p *ctpolicy.Policy) chain {
	c := chain{name: endChain(p.Name)}
	c.rules = []rule{{join(isTCP(), overdue(), countReset(counterName(p.Name, CountReset))), p.String()}}
	c.add(syn(), ctStatusIsNot(conntrack.StatusFixedTimeout, 0), countReset(counterName(p.Name, CountRefused)))
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
	c.add(ctLabelUnset(ctpolicy.LabelCovered), leave())
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
