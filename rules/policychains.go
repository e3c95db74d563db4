package rules

import (
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// policyChains are the chains of one policy. Its slot is that of its address label.
func policyChains(p *ctpolicy.Policy, slot int, defaults *conntrack.Timeouts) []chain {
	var list []chain
	if p.Addresses() {
		list = append(list, matchChainOf(p, slot, false), matchChainOf(p, slot, true))
	}
	list = append(list, limitChainOf(p, p.Timeouts(*defaults)))
	if !p.Ends() {
		return list
	}
	if p.Jitter > 0 {
		list = append(list, registerChainOf(p))
	}
	return append(list, endChainOf(p))
}

// matchChainOf labels new flows whose addresses are those of the policy, where they are still as the client dials them. The
// reversed one is for strays that the server sends.
func matchChainOf(p *ctpolicy.Policy, slot int, reversed bool) chain {
	c := chain{name: matchChain(p.Name, reversed)}
	for i := range families {
		f := families[i]
		for _, s := range addressSets(p) {
			c.match(&f, &s, reversed)
		}
	}
	c.add(setCtLabel(ctpolicy.LabelMatched + slot))
	return c
}

// match leaves the chain when the set says so. A family without prefixes has no set.
func (c *chain) match(f *family, s *addressSet, reversed bool) {
	none := len(s.prefixes.Family(f.nfproto == nfprotoIPv4)) == 0
	if none && s.wanted && len(s.prefixes) > 0 {
		c.add(f.is(), leave())
	}
	if none {
		return
	}
	for _, offset := range s.offsets(f, reversed) {
		if s.wanted {
			c.add(f.notIn(offset, s.name(f)), leave())
		} else {
			c.add(f.in(offset, s.name(f)), leave())
		}
	}
}

// closeTimeout is how long a closed flow's entry may still be there without our ct timeout object (the default of
// nf_conntrack_tcp_timeout_close).
const closeTimeout = 10 * time.Second

// limitChainOf takes in new flows. A SYN that would revive the entry of an earlier flow, and so inherit its age, is
// refused: the entry is gone in a moment. A SYN that is sent again is noted: the flow begins later than its entry.
func limitChainOf(p *ctpolicy.Policy, timeouts conntrack.Timeouts) chain {
	c := chain{name: limitChain(p.Name)}
	if p.Ends() && p.Enforced() {
		refuse := countReset(counterName(p.Name, CountReused))
		c.add(syn(), ctEstablished(), ctLabel(ctpolicy.LabelTracked), ctExpires(time.Second), refuse)
		c.add(syn(), ctEstablished(), ctLabelUnset(ctpolicy.LabelTracked), ctExpires(closeTimeout), refuse)
	}
	c.add(syn(), ctNew(), ctLabel(ctpolicy.LabelCovered), setCtLabel(ctpolicy.LabelRetried), leave())
	c.perSource(p)
	if p.Ends() && p.Enforced() {
		c.add(ctNew(), setCtTimeout(timeoutName(p.Name, timeouts)), setCtLabel(ctpolicy.LabelCovered), setCtLabel(ctpolicy.LabelTracked), taken(p))
	} else {
		c.add(ctNew(), setCtLabel(ctpolicy.LabelCovered), accept())
	}
	return c
}

// taken ends the way of a flow's first packet. Where entries don't outlive their flows, one in mid-flow is no stray.
func taken(p *ctpolicy.Policy) clause {
	if p.Outlived() {
		return leave()
	}
	return accept()
}

// endChainOf ends flows: those that are pinned, and without a reaper those whose time in the register is over.
func endChainOf(p *ctpolicy.Policy) chain {
	c := chain{name: endChain(p.Name)}
	if p.Enforced() {
		c.add(isTCP(), overdue(), countReset(counterName(p.Name, CountReset)))
		c.add(syn(), pinned(), countReset(counterName(p.Name, CountReused)))
	}
	c.register(p)
	return c
}
