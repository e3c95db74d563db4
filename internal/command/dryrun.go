package command

import (
	"errors"
	"fmt"
	"io/fs"

	"curfew/ctpolicy/conntrack"
	"curfew/rules"
)

// dryRun prints what apply would change, in nft's words, and changes nothing.
func dryRun(env *Env, o *options) error {
	in, err := readTable()
	if err != nil && !errors.Is(err, rules.ErrNotInstalled) {
		return err
	}
	if in != nil {
		switch sound, err := in.Sound(); {
		case err != nil:
			return explain(err)
		case !sound:
			fmt.Fprintln(env.Stdout, "# the installed table was changed by somebody else; apply would put that back, too")
		}
	}
	defaults, err := conntrack.NamespaceTimeouts()
	if errors.Is(err, fs.ErrNotExist) {
		defaults, err = conntrack.DefaultTimeouts(), nil // conntrack is not loaded yet
	}
	if err != nil {
		return explain(err)
	}
	diff := rules.Diff(in, rules.Config{Policies: o.policies, Defaults: defaults, RegisterSize: o.registerSize, Mark: o.mark})
	if diff == "" {
		diff = "# nothing would change\n"
	}
	_, err = fmt.Fprint(env.Stdout, diff)
	return err
}
