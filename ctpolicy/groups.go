package ctpolicy

import "slices"

// A Group is ports that the same policies cover, in their order: a flow belongs to the first one that matches.
type Group struct {
	Ports    []PortRange
	Policies []int // indexes into the list of all policies
}

// Groups parts the covered ports by the policies that cover them. Policies that can't be reached are left out: they come
// after one that takes all flows.
func Groups(policies []Policy) (groups []Group) {
	known := map[string]int{}
	for _, r := range segments(policies) {
		list := covering(policies, r.First)
		if len(list) == 0 {
			continue
		}
		key := listKey(list)
		i, ok := known[key]
		if !ok {
			i = len(groups)
			known[key] = i
			groups = append(groups, Group{Policies: list})
		}
		groups[i].Ports = append(groups[i].Ports, r)
	}
	for i := range groups {
		groups[i].Ports = joinRanges(groups[i].Ports)
	}
	return groups
}

// segments cuts the ports wherever a policy begins or ends.
func segments(policies []Policy) (list []PortRange) {
	var cuts []int
	for i := range policies {
		for _, r := range policies[i].Ports {
			cuts = append(cuts, int(r.First), int(r.Last)+1)
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := 1; i < len(cuts); i++ {
		list = append(list, PortRange{uint16(cuts[i-1]), uint16(cuts[i] - 1)})
	}
	return list
}

// covering are the policies of a port, up to the first that takes every flow.
func covering(policies []Policy, port uint16) (list []int) {
	for i := range policies {
		p := &policies[i]
		if !p.hasPort(port) {
			continue
		}
		list = append(list, i)
		if p.Direction == Any && !p.Addresses() {
			break
		}
	}
	return list
}

func listKey(list []int) string {
	key := make([]byte, 0, 2*len(list))
	for _, i := range list {
		key = append(key, byte(i>>8), byte(i))
	}
	return string(key)
}

// Of are the policies of the group that cover flows of a direction, up to the first that takes all of them.
func (g *Group) Of(policies []Policy, d Direction) (list []int) {
	for _, i := range g.Policies {
		if !policies[i].Direction.Includes(d) {
			continue
		}
		list = append(list, i)
		if !policies[i].Addresses() {
			break
		}
	}
	return list
}

// Directed tells whether it depends on a flow's direction which policy of the group covers it.
func (g *Group) Directed(policies []Policy) bool {
	return len(g.Policies) > 1 && slices.ContainsFunc(g.Policies, func(i int) bool { return policies[i].Direction != Any })
}
