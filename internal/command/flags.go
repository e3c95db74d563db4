package command

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/reaper/challenge"
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
			hint: "name a port and a limit, for example --port 389,636 --max-age 1h",
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
		if d.policy.Name == "" {
			d.policy.Name = fmt.Sprintf("tcp-%s", d.policy.Ports[0])
		}
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

// A policyFlag sets one key of the policy that is being described.
type policyFlag struct {
	name   string
	drafts *drafts
	set    func(p *ctpolicy.Policy, value string) error
}

// Set is called for each occurrence, in the order of the command line.
func (f *policyFlag) Set(value string) error { return f.set(f.drafts.forFlag(f.name), value) }

// String is the default in the help text.
func (f *policyFlag) String() string { return "" }

// policyFlags describe policies; the drafts hold them after parsing.
func policyFlags() (*drafts, []cli.Flag) {
	d := &drafts{}
	var flags []cli.Flag
	for _, k := range ctpolicy.Keys {
		name := flagName(k.Name)
		flags = append(flags, &cli.GenericFlag{Name: name, Usage: k.Usage, Value: &policyFlag{name, d, k.Set}})
	}
	return d, flags
}

// flagName is a key as a flag.
func flagName(key string) string { return strings.ReplaceAll(key, "_", "-") }

const defaultRegisterSize = 65536

// installFlags are those of apply and run.
func installFlags() (*drafts, []cli.Flag) {
	d, flags := policyFlags()
	return d, append(flags,
		&cli.StringFlag{Name: "existing", Value: "adopt", Usage: "connections that are open already: `adopt` or reset"},
		&cli.GenericFlag{
			Name: "adopt", Value: newAdopt(), DefaultText: "5m",
			Usage: "for this `TIME`, pick up forwarded connections that conntrack does not know; later ones are reset",
		},
		&cli.UintFlag{Name: "register-size", Value: defaultRegisterSize, Usage: "`FLOWS` that the fallback can hold for each of IPv4 and IPv6"},
		&cli.UintFlag{Name: "mark", Value: challenge.Mark, DefaultText: fmt.Sprintf("%#x", challenge.Mark), Usage: "packet `MARK` of our challenges"},
	)
}

// adopt is the flag of that name: a time, or 0 for none.
type adopt time.Duration

func newAdopt() *adopt {
	a := adopt(5 * time.Minute)
	return &a
}

// Set is for the flag.
func (a *adopt) Set(value string) error {
	if value == "0" {
		*a = 0
		return nil
	}
	d, err := ctpolicy.ParseLimit(value)
	*a = adopt(d)
	return err
}

// String is for the help text.
func (a *adopt) String() string { return ctpolicy.FormatDuration(time.Duration(*a)) }

const severalPolicies = `
Several policies: a flag that is repeated starts the next one.
   --port 80 --max-age 1h --port 443 --idle 10m`

// options are what apply and run were asked to do.
type options struct {
	policies     []ctpolicy.Policy
	reset        bool // end what is open already
	registerSize uint32
	mark         uint32
	adopt        time.Duration
}

func parseOptions(c *cli.Context, d *drafts) (*options, error) {
	policies, err := d.policies()
	if err != nil {
		return nil, err
	}
	o := &options{policies: policies}
	switch existing := c.String("existing"); existing {
	case "adopt":
	case "reset":
		o.reset = true
	default:
		return nil, usage(fmt.Errorf("--existing %q: must be adopt or reset", existing))
	}
	size, mark := c.Uint("register-size"), c.Uint("mark")
	if size < 1 || size > 1<<24 {
		return nil, usage(fmt.Errorf("--register-size %d: must be 1 to %d", size, 1<<24))
	}
	if mark < 1 || mark > 1<<32-1 {
		return nil, usage(fmt.Errorf("--mark %d: must be 1 to %#x", mark, uint32(1<<32-1)))
	}
	o.registerSize, o.mark = uint32(size), uint32(mark)
	o.adopt = time.Duration(*c.Generic("adopt").(*adopt))
	return o, nil
}
