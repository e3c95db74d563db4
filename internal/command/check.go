package command

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
	"curfew/ctpolicy/conntrack"
	"curfew/rules"
)

func checkCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "tell what a file says, and what it would cover now",
		Description: `Reads the file, prints its policies as they are understood, and how many connections each covers now and would end.
It changes nothing. Without privileges it tells all but the connections. Exits with 2 when something is wrong with the file.

   curfew check
   curfew check -c curfew.yaml`,
		Flags: []cli.Flag{newConfigFlag()},
		Action: func(c *cli.Context) error {
			path := c.String(configFlag)
			if !c.IsSet(configFlag) {
				path = env.config()
			}
			f, err := readConfig(path)
			if errors.Is(err, fs.ErrNotExist) && !c.IsSet(configFlag) {
				return &failure{err: err, code: ExitUsage, hint: "name the file: curfew check -c FILE"}
			}
			if err != nil {
				return err
			}
			check(env, path, f)
			return nil
		},
	}
}

func check(env *Env, path string, f *config.File) {
	fmt.Fprintf(env.Stdout, "%s: %s\n", path, plural(len(f.Policies), "policy", "policies"))
	for i := range f.Policies {
		fmt.Fprintf(env.Stdout, "  %s\n", policyText(&f.Policies[i]))
	}
	settings := make([]string, len(config.Settings))
	for i, s := range config.Settings {
		settings[i] = s.Name + " " + s.Get(f)
	}
	fmt.Fprintf(env.Stdout, "%s\n", strings.Join(settings, ", "))
	if len(f.Policies) == 0 {
		return
	}
	found, installed, err := findCovered(env.Clock, f)
	if err != nil {
		printUnknown(env, err)
		return
	}
	fmt.Fprintln(env.Stdout, "\nconnections that conntrack knows now:")
	for i := range f.Policies {
		p := &f.Policies[i]
		would := "would end now"
		if !p.Enforced() {
			would = "would end now in mode enforce"
		}
		c := found[p.Name]
		fmt.Fprintf(env.Stdout, "  %s: %s, %d %s\n", p.Name, plural(c.open, "connection", "connections"), c.ending, would)
	}
	if !installed && len(found) == 0 {
		fmt.Fprintln(env.Stdout, "conntrack follows connections only where rules ask for it, and curfew's are not installed: there may be more")
	}
}

// printUnknown says why connections can't be looked at.
func printUnknown(env *Env, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(env.Stdout, "\nconntrack is not loaded, so it knows no connections yet: installing limits loads it")
		return
	}
	fmt.Fprintf(env.Stdout, "\nthe connections that they cover now can't be looked at: %v\n", err)
	if known := (&failure{}); errors.As(explain(err), &known) && known.hint != "" {
		fmt.Fprintf(env.Stdout, "hint: %s\n", known.hint)
	}
}

// policyText is all that a policy says.
func policyText(p *ctpolicy.Policy) string {
	return fmt.Sprintf("%s: port %s, %s%s", p.Name, ctpolicy.FormatPorts(p.Ports), p, scopeText(p))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// A covered says how many connections a policy covers, and how many of them would end if the file was applied now.
type covered struct{ open, ending int }

// findCovered looks at all connections with the ages that are known now, and tells whether curfew is installed. It changes
// nothing.
func findCovered(clock ctpolicy.Clock, f *config.File) (found map[string]covered, installed bool, err error) {
	in, err := readTable()
	installed = err == nil
	if errors.Is(err, rules.ErrNotInstalled) {
		in, err = &rules.Installed{}, nil
	}
	if err != nil {
		return nil, false, err
	}
	k, err := openConntrack()
	if err != nil {
		return nil, installed, err
	}
	defer k.Close()
	judge, err := newJudge(clock, in)
	if err != nil {
		return nil, installed, err
	}
	judge.Timeline.Observe(clock.Now())
	found = map[string]covered{}
	err = k.eachCovered(ctpolicy.NewMatcher(f.Policies, k.local.has), func(p *ctpolicy.Policy, e *conntrack.Entry) {
		c := found[p.Name]
		c.open++
		if p.Ends() && (f.Reset || overdue(judge, p, e, clock.Now().Boot)) {
			c.ending++
		}
		found[p.Name] = c
	})
	return found, installed, err
}

// overdue tells that a flow's time under a policy is up for certain. A pause counts only where its entry can show it.
func overdue(judge *ctpolicy.Judge, p *ctpolicy.Policy, e *conntrack.Entry, now ctpolicy.Instant) bool {
	d := judge.Deadline(p, e, now)
	return d.Passed && (d.Cause == ctpolicy.CauseMaxAge || judge.Certain(p, e))
}
