package command

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

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
	released, kept, err := release(k, ctpolicy.NewMatcher(in.Policies, k.local.has))
	if err != nil {
		return explain(err)
	}
	if err := rules.Remove(); err != nil {
		return explain(err)
	}
	err = k.clearLabels()
	if oldTimestamps(in.Notes) == "0" {
		err = errors.Join(err, conntrack.SetTimestamps(false))
	}
	if err != nil {
		return explain(err)
	}
	fmt.Fprintf(env.Stdout, "removed; %d pinned connections released\n", released)
	if len(kept) > 0 {
		last := slices.MaxFunc(kept, func(a, b conntrack.Entry) int { return cmp.Compare(a.Timeout, b.Timeout) })
		fmt.Fprintf(env.Stdout, "%d connections with a conntrack helper keep their pin: conntrack forgets the last of them in %s\n",
			len(kept), ctpolicy.FormatDuration(time.Duration(last.Timeout)*time.Second))
	}
	return nil
}

// atOnce is how many entries are made anew while their packets are held back.
const atOnce = 500

// release takes the pins from covered flows. Those with a helper are kept.
func release(k *kernel, policies *ctpolicy.Matcher) (released int, kept []conntrack.Entry, err error) {
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
	for part := range slices.Chunk(pinned, atOnce) {
		var tuples []conntrack.Tuple
		for i := range part {
			tuples = append(tuples, part[i].Tuples()...)
		}
		if err := rules.Hold(tuples...); err != nil {
			return released, kept, err
		}
		for i := range part {
			if !ctpolicy.Open(&part[i]) {
				err = errors.Join(err, k.Delete(&part[i]))
				continue
			}
			switch one := releaseOne(k, &part[i], &defaults); {
			case errors.Is(one, conntrack.ErrHelper):
				kept = append(kept, part[i])
			case one != nil:
				err = errors.Join(err, one)
			default:
				released++
			}
		}
	}
	return released, kept, err
}

// releaseOne makes the entry of an open flow anew. A packet that was faster has done that, too.
func releaseOne(k *kernel, e *conntrack.Entry, defaults *conntrack.Timeouts) error {
	_, err := k.Renew(e, func(anew *conntrack.Entry) {
		anew.Status &^= conntrack.StatusFixedTimeout
		anew.Timeout = defaults[conntrack.TimeoutOf(e.State)]
		anew.Label = conntrack.Label{}
	})
	if errors.Is(err, unix.EEXIST) || errors.Is(err, conntrack.ErrGone) {
		return nil
	}
	return err
}
