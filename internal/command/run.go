package command

import (
	"context"
	"errors"
	"os"

	"github.com/urfave/cli/v2"

	"curfew/rules"
)

func runCommand(env *Env) *cli.Command {
	s, flags := installFlags(env)
	return &cli.Command{
		Name:  "run",
		Usage: "install limits, then end connections at their limit until told to stop",
		Description: `Does what apply does, then sweeps and ends connections until SIGTERM or SIGINT; one line is logged for each. SIGHUP
reads the file again and installs the rules again; a file with errors changes no limit. The rules stay when it stops:
curfew remove takes them away.

   curfew run --port 8080 --max-age 30s
   curfew run -c /etc/curfew/curfew.yaml
   curfew run --name ldap --port 389,636 --max-age 1h --idle 10m --existing reset
` + severalPolicies,
		Flags: append(flags, verboseFlag()),
		Action: func(c *cli.Context) error {
			load := func() (*options, error) { return s.options(c) }
			return run(c.Context, env, load, c.Bool("verbose"))
		},
	}
}

func verboseFlag() cli.Flag {
	return &cli.BoolFlag{Name: "verbose", Usage: "log more"}
}

// run asks load for the options at its start and on each reload.
func run(ctx context.Context, env *Env, load func() (*options, error), verbose bool) (err error) {
	o, err := load()
	if err != nil {
		return err
	}
	k, err := openKernel(o.mark)
	if err != nil {
		return err
	}
	defer k.Close()
	defer func() { err = errors.Join(err, stopBeat()) }()
	s := &service{
		env: env, log: env.logger(verbose), k: k, o: o, load: load,
		changes: make(chan rules.Change, 1), disturbed: make(chan struct{}, 1),
	}
	return s.run(ctx)
}

// stopBeat wakes the fallback now, if the heartbeat is ours and the rules are still there.
func stopBeat() error {
	in, err := rules.Read()
	if err == nil && in.Reaper.PID == os.Getpid() {
		err = rules.StopBeat()
	}
	if errors.Is(err, rules.ErrNotInstalled) || errors.Is(err, rules.ErrForeign) || errors.Is(err, rules.ErrFormat) {
		return nil
	}
	return err
}
