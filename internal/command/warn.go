package command

import (
	"fmt"

	"curfew/ctpolicy"
	"curfew/internal/iprule"
	"curfew/rules"
)

// warn tells what else on the host uses what is ours. What can't be found out is no reason not to go on.
func warn(env *Env, mark uint32) {
	labels, err := rules.LabelUsers()
	tell(env, err, labels, "chain %s uses one of the ct labels %d to %d, which are curfew's: limits may come early or late",
		ctpolicy.FirstLabel, ctpolicy.LabelRegistered)
	marks, err := rules.MarkUsers(mark)
	tell(env, err, marks, "chain %s uses packet mark %#x, which is curfew's: challenges may be lost, or other packets untracked;"+
		" choose another with --mark", mark)
	routes, err := iprule.MarkUsers(mark)
	tell(env, err, routes, "%s tells packet mark %#x, which is curfew's, from others: challenges may be routed elsewhere;"+
		" choose another with --mark", mark)
}

// tell prints a line for each user; format takes the user first.
func tell(env *Env, err error, users []string, format string, args ...any) {
	for _, user := range users {
		fmt.Fprintf(env.Stderr, "curfew: warning: "+format+"\n", append([]any{user}, args...)...)
	}
	if err != nil {
		fmt.Fprintf(env.Stderr, "curfew: warning: can't tell who else uses what is curfew's: %v\n", err)
	}
}
