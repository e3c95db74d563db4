package rules

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"curfew/ctpolicy"
)

// A way leads from a port to the chains of the policies that cover it. Where only one does, the map leads to that policy's
// chain; else to a chain for these ports that picks the first policy that matches.
type way struct {
	name   string // of the map
	ports  []portTarget
	chains []chain
}

type portTarget struct {
	ports  ctpolicy.PortRange
	target string
}

// A choice is one policy on a way: where to go when a flow is its own.
type choice struct {
	when clause // empty: always
	then clause
	to   string // the chain, for a map that can lead there without asking
}

// ways are all of them, in the order of the table.
func ways(policies []ctpolicy.Policy) []way {
	slots, _ := ctpolicy.Slots(policies)
	groups := ctpolicy.Groups(policies)
	list := make([]way, 0, 3+len(ctpolicy.Directions))
	build := func(m, suffix string, choices func(g *ctpolicy.Group) []choice) {
		w := way{name: m}
		for i := range groups {
			w.add(&groups[i], suffix, choices(&groups[i]))
		}
		list = append(list, w)
	}
	build(mapMatch, "match", func(g *ctpolicy.Group) []choice { return matchChoices(policies, g, false) })
	build(mapMatchReply, "match-reply", func(g *ctpolicy.Group) []choice { return matchChoices(policies, g, true) })
	build(mapEnd, "end", func(g *ctpolicy.Group) []choice { return endChoices(policies, slots, g) })
	for _, d := range ctpolicy.Directions {
		build(limitMap(d), string(d), func(g *ctpolicy.Group) []choice { return limitChoices(policies, slots, g, d) })
	}
	return list
}

// add adds a group of ports.
func (w *way) add(g *ctpolicy.Group, suffix string, choices []choice) {
	if len(choices) == 0 {
		return
	}
	target := choices[0].to
	if len(choices) > 1 || choices[0].when.text != "" {
		c := chain{name: fmt.Sprintf("port/%d/%s", g.Ports[0].First, suffix)}
		for _, one := range choices {
			c.add(one.when, one.then)
		}
		w.chains = append(w.chains, c)
		target = c.name
	}
	for _, r := range g.Ports {
		w.ports = append(w.ports, portTarget{r, target})
	}
}

// matchChoices are all policies with addresses: each labels the flow for itself.
func matchChoices(policies []ctpolicy.Policy, g *ctpolicy.Group, reversed bool) (list []choice) {
	for _, i := range g.Policies {
		if p := &policies[i]; p.Addresses() {
			to := matchChain(p.Name, reversed)
			list = append(list, choice{then: jump(to), to: to})
		}
	}
	return list
}

// limitChoices pick the policy of a direction. Where the direction matters it is remembered.
func limitChoices(policies []ctpolicy.Policy, slots []int, g *ctpolicy.Group, d ctpolicy.Direction) (list []choice) {
	if g.Directed(policies) {
		list = append(list, choice{when: ctNew(), then: setCtLabel(ctpolicy.DirectionLabel(d))})
	}
	for _, i := range g.Of(policies, d) {
		to := limitChain(policies[i].Name)
		list = append(list, choice{matched(slots[i]), goTo(to), to})
	}
	return list
}

// endChoices pick the policy of a flow by its labels. A flow of a policy that limits no lifetime goes on.
func endChoices(policies []ctpolicy.Policy, slots []int, g *ctpolicy.Group) (list []choice) {
	ends, unlabelled := false, choice{}
	for _, i := range g.Policies {
		p := &policies[i]
		one := choice{matched(slots[i]), accept(), ""}
		if g.Directed(policies) && p.Direction != ctpolicy.Any {
			one.when = join(one.when, ctLabel(ctpolicy.DirectionLabel(p.Direction)))
		}
		if p.Ends() {
			ends = true
			one.to = endChain(p.Name)
			one.then = goTo(one.to)
		}
		if p.Ends() && p.Enforced() && unlabelled.to == "" {
			unlabelled = choice{pinned(), one.then, one.to}
		}
		list = append(list, one)
	}
	if !ends {
		return nil
	}
	if last := list[len(list)-1]; last.when.text != "" && unlabelled.to != "" {
		// Entries that are older than the first rule about labels have no room for one (nf_ct_labels_ext_add), but can be pinned.
		list = append(list, unlabelled)
	}
	return list
}

// matched is for flows whose addresses are those of the policy with the slot.
func matched(slot int) clause {
	if slot < 0 {
		return clause{}
	}
	return ctLabel(ctpolicy.LabelMatched + slot)
}

// set is the map.
func (w *way) set() filledSet {
	set := filledSet{Set: portMap(w.name)}
	slices.SortFunc(w.ports, func(a, b portTarget) int { return cmp.Compare(a.ports.First, b.ports.First) })
	for _, p := range w.ports {
		set.elements = append(set.elements, interval(p.ports, p.target)...)
		set.text = append(set.text, fmt.Sprintf("%s : jump %s", p.ports, p.target))
	}
	return set
}

// interval is a range of ports as the kernel keeps it: half open, and without an end at the top.
func interval(r ctpolicy.PortRange, target string) []nftables.SetElement {
	elements := []nftables.SetElement{{
		Key:         binaryutil.BigEndian.PutUint16(r.First),
		VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: target},
	}}
	if r.Last < 65535 {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.Last + 1), IntervalEnd: true})
	}
	return elements
}
