package command

import (
	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// eachCovered calls a function for each open flow that a policy covers. A dump may show a flow twice: it is called once.
func (k *kernel) eachCovered(policies *ctpolicy.Matcher, fn func(p *ctpolicy.Policy, e *conntrack.Entry)) error {
	known := map[conntrack.Tuple]bool{}
	return k.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		if p := policies.Flow(e); p != nil && ctpolicy.Open(e) && !known[e.Orig] {
			known[e.Orig] = true
			fn(p, e)
		}
		return nil
	})
}
