package rules

import (
	"slices"

	"github.com/google/nftables"

	"curfew/ctpolicy"
)

// A chain is one chain of the table with its rules.
type chain struct {
	name     string
	hook     *nftables.ChainHook // nil: reached by jumps only
	priority nftables.ChainPriority
	rules    []rule
}

type rule struct {
	clause
	comment string
}

func (c *chain) add(clauses ...clause) { c.rules = append(c.rules, rule{clause: join(clauses...)}) }

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
	list := []chain{policiesChain(c.Policies), {name: chainState}}
	slots, _ := ctpolicy.Slots(c.Policies)
	for i := range c.Policies {
		list = append(list, policyChains(&c.Policies[i], slots[i], &c.Defaults)...)
	}
	for _, w := range ways(c.Policies) {
		list = append(list, w.chains...)
	}
	addresses := slices.ContainsFunc(c.Policies, func(p ctpolicy.Policy) bool { return p.Addresses() })
	return append(list, endAt(nftables.ChainHookPrerouting, addresses), endAt(nftables.ChainHookOutput, addresses),
		inputChain(), forwardChain(), outputChain(), probeChain(c.Mark))
}

// policiesChain says what the policies are, for a person and for Read. No packet reaches it.
func policiesChain(policies []ctpolicy.Policy) chain {
	c := chain{name: chainPolicies}
	for i := range policies {
		for _, line := range policies[i].Lines(maxComment) {
			c.rules = append(c.rules, rule{leave(), line})
		}
	}
	return c
}

// newInMidFlow is the packets that make conntrack pick up a flow without having seen its handshake.
func newInMidFlow() clause { return join(ctNew(), notSyn()) }

// overdue is the packets of flows that were pinned, after their deadline: a pinned entry counts down to its deadline plus
// the window, whatever its packets do.
func overdue() clause { return join(pinned(), ctExpires(ctpolicy.Window)) }

// endAt is where flows end: before NAT, so that the reset goes to the sender with the addresses that it knows. That of a
// packet which is bridged (br_netfilter) never meets NAT on its way back (nf_send_reset). While a reaper is alive nearly
// every packet leaves at once; without one those from the server leave next.
func endAt(hook *nftables.ChainHook, addresses bool) chain {
	c := chain{name: "end-prerouting", hook: hook, priority: priorityEnd}
	if hook == nftables.ChainHookOutput {
		c.name = "end-output"
	}
	if addresses {
		c.add(ctNew(), vmapPort(mapMatch))
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
	c.add(ctEstablished(), vmapOriginalPort(mapEnd))
	return c
}

// letResetsPass lets RST pass: it is how an end learns that the other one is gone. It is noted who is being reset after the
// deadline, and who sends a reset: that end has closed. At output resets are not noted: they are those that our rules
// send, in the name of the other end.
func (c *chain) letResetsPass(hook *nftables.ChainHook) {
	pass := func() { c.add(isReset(), accept()) }
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
	c.add(ctNotNew(), notSyn(), accept())
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
	c.add(ctOriginal(), toHere(), vmapOriginalPort(limitMap(ctpolicy.Inbound)))
	c.add(ctOriginal(), toElsewhere(), vmapOriginalPort(limitMap(ctpolicy.Outbound)))
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

// probeChain keeps our challenges away from conntrack and NAT.
func probeChain(mark uint32) chain {
	c := chain{name: chainProbe, hook: nftables.ChainHookOutput, priority: priorityProbe}
	c.add(marked(mark), notrack())
	return c
}
