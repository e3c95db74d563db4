package rules

import (
	"fmt"
	"time"

	"github.com/google/nftables/binaryutil"

	"curfew/ctpolicy"
)

// registerSlack makes up for the fractions of a jiffy that the kernel cuts from an element's timeout. It is whole jiffies at
// every HZ.
const registerSlack = 20 * time.Millisecond

// register keeps the fallback's register: an open flow is entered once, for the greatest age that it may reach; when its
// element is gone its time is up. Registering at the SYN would let a SYN flood fill it, and `update`, not `add`, gives a new
// flow from the same port its full time.
func (c *chain) register(p *ctpolicy.Policy) {
	if p.MaxAge == 0 {
		return
	}
	c.add(notOpen(), leave())
	c.add(ctLabelUnset(ctpolicy.LabelCovered), leave())
	if p.Jitter > 0 {
		c.add(ctLabelUnset(ctpolicy.LabelRegistered), jump(registerChain(p.Name)))
	}
	for i := range families {
		f, set := &families[i], flowsSet(&families[i])
		if p.Jitter == 0 {
			c.add(ctLabelUnset(ctpolicy.LabelRegistered), f.update(set, p.LastAge()+registerSlack), setCtLabel(ctpolicy.LabelRegistered))
		}
		c.add(ctLabel(ctpolicy.LabelRegistered), f.outlived(p, set))
	}
}

// outlived is what happens to a flow whose element is gone.
func (f *family) outlived(p *ctpolicy.Policy, set string) clause {
	switch {
	case !p.Enforced():
		return join(ctLabelUnset(ctpolicy.LabelReported), f.missing(set), count(counterName(p.Name, CountReported)), setCtLabel(ctpolicy.LabelReported))
	case p.Rate > 0:
		return join(f.missing(set), limitRate(p.Rate), countReset(counterName(p.Name, CountFallback)))
	}
	return join(f.missing(set), countReset(counterName(p.Name, CountFallback)))
}

// jitterSlices is how many different times the register gives to the flows of a policy with jitter.
const jitterSlices = 8

// registerChainOf enters flows for different times, by their clients' ports: those are even, or odd, for long (net/ipv4
// /inet_hashtables.c), so the lowest bit does not count.
func registerChainOf(p *ctpolicy.Policy) chain {
	c := chain{name: registerChain(p.Name)}
	shortest := *p
	shortest.Jitter = 0
	base, spread := shortest.LastAge(), p.LastAge()-shortest.LastAge()
	for slice := range jitterSlices {
		timeout := base + spread*time.Duration(slice+1)/jitterSlices
		for i := range families {
			f := &families[i]
			c.add(sourcePortSlice(slice), f.update(flowsSet(f), timeout.Truncate(registerSlack)+registerSlack), setCtLabel(ctpolicy.LabelRegistered))
		}
	}
	return c
}

// sourcePortSlice is the packets whose source port has these bits above the lowest.
func sourcePortSlice(slice int) clause {
	bits, value := uint16(2*(jitterSlices-1)), uint16(2*slice)
	return join(implyTCP(), say(fmt.Sprintf("tcp sport & %d == %d", bits, value), loadPort(sourcePort, reg),
		mask(binaryutil.BigEndian.PutUint16(bits)), equal(binaryutil.BigEndian.PutUint16(value))))
}
