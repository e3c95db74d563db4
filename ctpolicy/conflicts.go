package ctpolicy

import "errors"

// A Conflict is something wrong with a policy that is wrong only because of earlier ones.
type Conflict struct {
	Policy int // its index
	Problem
}

var errSameName = errors.New("another policy has this name; give each its own name")

// Conflicts are the names that two policies share, ports that too many share, and policies that earlier ones leave nothing,
// ordered by policy.
func Conflicts(policies []Policy) (list []Conflict) {
	names := map[string]bool{}
	slots, _ := Slots(policies)
	for i := range policies {
		p := &policies[i]
		wrong := func(key string, err error) { list = append(list, Conflict{i, Problem{key, err}}) }
		if names[p.Name] {
			wrong("name", errSameName)
		}
		names[p.Name] = true
		if p.Addresses() && slots[i] == slotless {
			wrong("port", errSlots)
		}
		if takers := shadowing(policies[:i], p); len(takers) > 0 {
			wrong("", shadowError(takers))
		}
	}
	return list
}
