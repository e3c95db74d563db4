package command

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/rules"
)

func removeCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "remove",
		Usage: "take away the table and everything else of ours",
		Description: `Deletes the table inet curfew, releases pinned connections, which go on without a limit, and puts the sysctl
nf_conntrack_timestamp back. When nothing is installed it says so, and that is no error.

   curfew remove`,
		Action: func(*cli.Context) error { return remove(env) },
	}
}

func remove(env *Env) error {
	in, err := readTable()
	if errors.Is(err, rules.ErrNotInstalled) {
		fmt.Fprintln(env.Stdout, "curfew is not installed: nothing to remove")
		return nil
	}
	if err != nil {
		return err
	}
	if in.Reaper.Running() && in.Reaper.PID != 0 {
		return busy(in.Reaper)
	}
	k, err := openConntrack()
	if err != nil {
		return err
	}
	defer k.Close()
	if err := rules.Remove(); err != nil {
		return explain(err)
	}
	released, left, err := release(k, ctpolicy.NewMatcher(in.Policies, k.local.has))
	err = errors.Join(err, clearLabels(k, allLabels))
	if oldTimestamps(in.Notes) == "0" {
		err = errors.Join(err, conntrack.SetTimestamps(false))
	}
	if err != nil {
		return explain(err)
	}
	fmt.Fprintf(env.Stdout, "removed; %d pinned connections released\n", released)
	for i := range left {
		fmt.Fprintf(env.Stdout, "%s has address translation and keeps its pin: conntrack forgets it in %s\n",
			left[i].Orig, time.Duration(left[i].Timeout)*time.Second)
	}
	return nil
}

// release takes the pins from covered flows. Those with address translation are left.
func release(k *kernel, policies *ctpolicy.Matcher) (released int, left []conntrack.Entry, err error) {
	var pinned []conntrack.Entry
	filter := conntrack.Filter{Status: conntrack.StatusFixedTimeout, StatusMask: conntrack.StatusFixedTimeout}
	err = k.Dump(filter, func(e *conntrack.Entry) error {
		if policies.Flow(e) != nil {
			pinned = append(pinned, *e)
		}
		return nil
	})
	if err != nil {
		return 0, nil, err
	}
	defaults, err := conntrack.NamespaceTimeouts()
	if err != nil {
		return 0, nil, err
	}
	for i := range pinned {
		e := &pinned[i]
		if !ctpolicy.Open(e) {
			err = errors.Join(err, k.Delete(e))
			continue
		}
		switch one := k.Release(e, defaults[conntrack.TimeoutOf(e.State)]); {
		case errors.Is(one, conntrack.ErrNAT):
			left = append(left, *e)
		case one != nil:
			err = errors.Join(err, one)
		default:
			released++
		}
	}
	return released, left, err
}
