package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/reaper"
	"curfew/rules"
)

func applyCommand(env *Env) *cli.Command {
	s, flags := installFlags(env)
	return &cli.Command{
		Name:  "apply",
		Usage: "install limits in the kernel, without a process of ours",
		Description: `Installs the table inet curfew, and pins every covered connection that is open already. From then on the kernel
alone ends connections at their limit: at the next packet, for the end that sends it. A reaper (curfew run, or curfew
reap from a timer) adds the idle ones, both ends at once, and milliseconds.

   curfew apply --port 389,636 --max-age 1h
   curfew apply -c /etc/curfew/curfew.yaml
   curfew apply --name web --port 8000-8010 --max-age 30m --idle 5m
` + severalPolicies,
		Flags: append(flags, &cli.BoolFlag{Name: "dry-run", Usage: "print what would change in the table, in nft's words, and change nothing"}),
		Action: func(c *cli.Context) error {
			o, err := s.options(c)
			if err != nil {
				return err
			}
			if c.Bool("dry-run") {
				return dryRun(env, o)
			}
			return apply(c.Context, env, o)
		},
	}
}

func apply(ctx context.Context, env *Env, o *options) (err error) {
	k, err := openKernel(o.mark)
	if err != nil {
		return err
	}
	defer k.Close()
	in, err := install(ctx, env, k, o, nil, false)
	if err != nil {
		return err
	}
	r, err := k.newReaper(env, in, env.logger(false))
	if err != nil {
		return err
	}
	if in.Reaper.PID != 0 {
		return applyBeside(ctx, env, r, in, o)
	}
	return applyAlone(ctx, env, r, in, o)
}

// applyAlone leaves the kernel to enforce the limits.
func applyAlone(ctx context.Context, env *Env, r *reaper.Reaper, in *rules.Installed, o *options) (err error) {
	defer func() { err = errors.Join(err, rules.StopBeat()) }()
	t := &tally{}
	r.Ended = t.count
	adopted, left := r.Adopt()
	if o.reset {
		if err := r.EndAll(); err != nil {
			return explain(err)
		}
	}
	without, err := r.PinAll()
	if err != nil {
		return explain(err)
	}
	scheduled := r.Scheduled()
	// Pinning takes up to a second: the register must not wait for it with connections that are opened meanwhile.
	if err := rules.StopBeat(); err != nil {
		return explain(err)
	}
	r.Drain(ctx)
	printPolicies(env, in)
	printApplied(env, o, in, adopted, scheduled-t.all, without, t)
	return explain(left)
}

// applyBeside leaves them to the reaper that is there: it sees that the table has changed.
func applyBeside(ctx context.Context, env *Env, r *reaper.Reaper, in *rules.Installed, o *options) error {
	t := &tally{}
	r.Ended = t.count
	if o.reset {
		if err := r.EndAll(); err != nil {
			return explain(err)
		}
		r.Drain(ctx)
	}
	printPolicies(env, in)
	fmt.Fprintf(env.Stdout, "installed; the reaper (pid %d) takes over; %d ended\n", in.Reaper.PID, t.ended)
	early, err := r.PinnedEarly()
	if err == nil && early > 0 {
		fmt.Fprintf(env.Stdout, "%d connections are pinned already and keep their earlier limit\n", early)
	}
	return explain(err)
}

func printPolicies(env *Env, in *rules.Installed) {
	for i := range in.Policies {
		fmt.Fprintln(env.Stdout, policyText(&in.Policies[i]))
	}
}

func printApplied(env *Env, o *options, in *rules.Installed, adopted, pinned, without int, t *tally) {
	fmt.Fprintf(env.Stdout, "installed; %d open connections pinned, %d of them new to conntrack; %d ended\n", pinned, adopted, t.ended)
	if without > 0 {
		fmt.Fprintf(env.Stdout, "%d open connections have a limit that only a reaper can enforce\n", without)
	}
	if t.survived > 0 {
		fmt.Fprintf(env.Stdout, "%d connections could not be ended\n", t.survived)
	}
	fmt.Fprintf(env.Stdout, `The kernel now ends connections that send, at the sender's end. A reaper adds the idle ones, both ends, and milliseconds:
   curfew run%s
or, from a timer that fires every minute:
   curfew reap
`, flagsOf(o))
}

// flagsOf are the flags that ask for the same policies.
func flagsOf(o *options) string {
	if o.file != "" {
		return " -c " + o.file
	}
	var b strings.Builder
	for i := range o.policies {
		for _, k := range ctpolicy.Keys {
			value := k.Get(&o.policies[i])
			if strings.Contains(value, " ") {
				value = "'" + value + "'"
			}
			if value != "" {
				fmt.Fprintf(&b, " --%s %s", flagName(k.Name), value)
			}
		}
	}
	return b.String()
}

// A scoped is a list of prefixes and its key.
type scoped struct {
	key      string
	prefixes ctpolicy.Prefixes
}

// scope are the addresses that a policy covers, as far as it says.
func scope(p *ctpolicy.Policy) (list []scoped) {
	for _, s := range []scoped{{"from", p.From}, {"to", p.To}, {"except", p.Except}} {
		if len(s.prefixes) > 0 {
			list = append(list, s)
		}
	}
	return list
}

func scopeText(p *ctpolicy.Policy) string {
	var b strings.Builder
	for _, s := range scope(p) {
		fmt.Fprintf(&b, ", %s %s", s.key, s.prefixes)
	}
	return b.String()
}

// A tally counts results.
type tally struct{ all, ended, survived int }

func (t *tally) count(r *reaper.Result) {
	t.all++
	switch r.Method {
	case reaper.MethodNone:
		t.survived++
	case reaper.MethodSocket, reaper.MethodRule:
		t.ended++
	}
}
