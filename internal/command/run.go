package command

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
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
	var in *rules.Installed
	for reload := false; ; reload = true {
		if reload {
			o = reloaded(o, load, env.logger(verbose))
		}
		fresh, err := install(env, k, o, in)
		if err == nil {
			err = rules.Beat(os.Getpid())
		}
		switch {
		case err == nil:
			in = fresh
		case reload:
			env.logger(verbose).Error("the rules could not be installed again: the old limits stay in force", "error", err)
		default:
			return err
		}
		if err := k.useMark(in.Mark); err != nil {
			env.logger(verbose).Error("challenges keep their old mark: connections may end late", "error", err)
		}
		err = reapUntilReload(ctx, env, k, in, o.reset && !reload, verbose)
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// reloaded are the options as they are now, or the old ones where something is wrong with them.
func reloaded(old *options, load func() (*options, error), log *slog.Logger) *options {
	fresh, err := load()
	if err == nil {
		return fresh
	}
	lines := config.Errors{}
	if !errors.As(err, &lines) {
		log.Error("the configuration can't be used: the old limits stay in force", "error", err)
	}
	for _, line := range lines {
		log.Error("the configuration can't be used: the old limits stay in force", "error", line)
	}
	return old
}

// reapUntilReload answers nil when the context ends or a reload is asked for.
func reapUntilReload(ctx context.Context, env *Env, k *kernel, in *rules.Installed, reset, verbose bool) error {
	r, err := k.newReaper(env, in, verbose)
	if err != nil {
		return err
	}
	adopted, err := r.Adopt()
	if err != nil {
		// Sweeps age what has no entry by its socket: late is better than not at all.
		r.Log.Error("adopt", "error", err)
	}
	if reset {
		if err := r.EndAll(); err != nil {
			return explain(err)
		}
	}
	for i := range in.Policies {
		p := &in.Policies[i]
		r.Log.Info("limiting", "policy", p.Name, "port", ctpolicy.FormatPorts(p.Ports), "limits", p.String()+scopeText(p))
	}
	r.Log.Info("running", "pid", os.Getpid(), "adopted", adopted, "sweep", r.Interval())
	stop := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-env.Reload:
			r.Log.Info("installing the rules again")
			cancel()
		case <-ctx.Done():
		}
	}()
	r.Run(ctx)
	if stop.Err() != nil {
		r.Log.Info("stopped; the rules stay until `curfew remove`")
	}
	return nil
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
