package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"curfew/rules"
)

func reapCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "reap",
		Usage: "one pass over the installed limits, for a timer or cron",
		Description: `Ends what is overdue, pins what is due soon, and adopts connections that conntrack does not know. It reads the limits
from the table that apply has installed.

   curfew apply --port 389 --max-age 1h --idle 10m && watch -n 60 curfew reap`,
		Flags: []cli.Flag{verboseFlag()},
		Action: func(c *cli.Context) error {
			return reap(c.Context, env, c.Bool("verbose"))
		},
	}
}

func reap(ctx context.Context, env *Env, verbose bool) (err error) {
	in, err := readTable()
	if errors.Is(err, rules.ErrNotInstalled) {
		return hint(err, "install a limit first, for example: curfew apply --port 389 --max-age 1h")
	}
	if err != nil {
		return err
	}
	if in.Reaper.Running() {
		return busy(in.Reaper)
	}
	k, err := openKernel(in.Mark)
	if err != nil {
		return err
	}
	defer k.Close()
	r, err := k.newReaper(env, in, env.logger(verbose))
	if err != nil {
		return err
	}
	t := &tally{}
	r.Ended = t.count
	adopted, left := r.AdoptOrEnd()
	left = errors.Join(left, r.Sweep())
	r.Drain(ctx) // also what a sweep has found that could not be finished
	fmt.Fprintf(env.Stdout, "%d ended, %d survived, %d adopted\n", t.ended, t.survived, adopted)
	return explain(left)
}
