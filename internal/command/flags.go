package command

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
)

// A draft is a policy as the flags have it so far.
type draft struct {
	policy ctpolicy.Policy
	given  []string // the flags that it has
}

// drafts collects policies from flags. The order matters: a flag that the last policy has already starts the next one.
type drafts struct{ list []draft }

func (d *drafts) forFlag(name string) *ctpolicy.Policy {
	last := len(d.list) - 1
	if last < 0 || slices.Contains(d.list[last].given, name) {
		d.list = append(d.list, draft{})
		last++
	}
	d.list[last].given = append(d.list[last].given, name)
	return &d.list[last].policy
}

// policies are the finished policies; those without a name get one from their first port.
func (d *drafts) policies() ([]ctpolicy.Policy, error) {
	if len(d.list) == 0 {
		return nil, &failure{
			err: errors.New("no policy given"), code: ExitUsage,
			hint: "name a port and a limit, for example --port 389,636 --max-age 1h, or a file: -c curfew.yaml",
		}
	}
	var policies []ctpolicy.Policy
	for i, d := range d.list {
		if len(d.policy.Ports) == 0 {
			return nil, &failure{
				err: fmt.Errorf("policy %d (--%s): no port given", i+1, strings.Join(d.given, ", --")), code: ExitUsage,
				hint: "name the ports to cover, for example --port 389,636",
			}
		}
		d.policy.SetDefaultName()
		policies = append(policies, d.policy)
	}
	if err := ctpolicy.Validate(policies); err != nil {
		return nil, &failure{
			err: err, code: ExitUsage,
			hint: "a repeated flag starts the next policy; several ports of one policy go into one list: --port 80,443",
		}
	}
	return policies, nil
}

// A keyFlag sets one key of the policy that is being described, or one setting.
type keyFlag struct {
	set   func(value string) error
	given string // the default in the help text
}

// Set is called for each occurrence, in the order of the command line.
func (f *keyFlag) Set(value string) error { return f.set(value) }

// String is the default in the help text.
func (f *keyFlag) String() string { return f.given }

// flagName is a key's flag.
func flagName(key string) string { return strings.ReplaceAll(key, "_", "-") }

// policyFlags describe policies; the drafts hold them after parsing.
func policyFlags(d *drafts) (flags []cli.Flag) {
	for _, k := range ctpolicy.Keys {
		name := flagName(k.Name)
		flags = append(flags, &cli.GenericFlag{Name: name, Usage: k.Usage, Value: &keyFlag{set: func(value string) error {
			return k.Set(d.forFlag(name), value)
		}}})
	}
	return flags
}

// settingFlags are the settings beside policies.
func settingFlags(f *config.File) (flags []cli.Flag) {
	for _, s := range config.Settings {
		set := func(value string) error { return s.Set(f, value) }
		flags = append(flags, &cli.GenericFlag{Name: flagName(s.Name), Usage: s.Usage, Value: &keyFlag{set, s.Default()}})
	}
	return flags
}

const severalPolicies = `
Several policies: a flag that is repeated starts the next one.
   --port 80 --max-age 1h --port 443 --idle 10m
With neither flags nor -c it reads ` + config.DefaultPath + `, where that exists.`
