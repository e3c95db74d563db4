package command

import (
	"errors"
	"fmt"

	"curfew/internal/iprule"
	"curfew/rules"
)

// warnMark tells what else on the host goes by the mark of our challenges.
func warnMark(env *Env, mark uint32) error {
	chains, err := rules.MarkUsers(mark)
	for _, chain := range chains {
		fmt.Fprintf(env.Stderr, "curfew: warning: chain %s uses packet mark %#x, which is curfew's: "+
			"challenges may be lost, or other packets untracked; choose another with --mark\n", chain, mark)
	}
	routes, routesErr := iprule.MarkUsers(mark)
	for _, route := range routes {
		fmt.Fprintf(env.Stderr, "curfew: warning: %s tells packet mark %#x, which is curfew's, from others: "+
			"challenges may be routed elsewhere; choose another with --mark\n", route, mark)
	}
	return errors.Join(err, routesErr)
}
