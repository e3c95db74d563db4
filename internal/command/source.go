package command

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
)

// options are what apply and run were asked to do.
type options struct {
	policies     []ctpolicy.Policy
	reset        bool // end what is open already
	registerSize uint32
	mark         uint32
	adopt        time.Duration
	file         string // where it is written, "" for flags
}

// A source is where options come from: flags, or a file.
type source struct {
	env      *Env
	drafts   drafts
	settings *config.File // as the flags have them
}

const configFlag = "config"

// installFlags are those of apply and run.
func installFlags(env *Env) (*source, []cli.Flag) {
	s := &source{env: env, settings: config.New()}
	flags := append([]cli.Flag{newConfigFlag()}, policyFlags(&s.drafts)...)
	return s, append(flags, settingFlags(s.settings)...)
}

func newConfigFlag() cli.Flag {
	return &cli.StringFlag{Name: configFlag, Aliases: []string{"c"}, Usage: "read limits from this `FILE`"}
}

// options reads them anew on each call: a file may have changed.
func (s *source) options(c *cli.Context) (*options, error) {
	flags := givenFlags(c)
	path := c.String(configFlag)
	switch {
	case c.IsSet(configFlag) && len(flags) > 0:
		return nil, usage(errors.New("--config and --" + flags[0] + " can't be given together: write all limits into the file, or all as flags"))
	case c.IsSet(configFlag):
	case len(flags) == 0 && exists(s.env.config()):
		path = s.env.config()
	default:
		policies, err := s.drafts.policies()
		return newOptions(s.settings, policies, ""), err
	}
	f, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	return newOptions(f, f.Policies, path), nil
}

func newOptions(f *config.File, policies []ctpolicy.Policy, path string) *options {
	return &options{policies: policies, reset: f.Reset, registerSize: f.RegisterSize, mark: f.Mark, adopt: f.Adopt, file: path}
}

// givenFlags are the flags that say what a file could say.
func givenFlags(c *cli.Context) (names []string) {
	for _, k := range ctpolicy.Keys {
		names = append(names, flagName(k.Name))
	}
	for _, s := range config.Settings {
		names = append(names, flagName(s.Name))
	}
	return slices.DeleteFunc(names, func(name string) bool { return !c.IsSet(name) })
}

// exists is true also for a file that can't be looked at: reading it tells why.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// readConfig reads a file; what is wrong with it is bad usage.
func readConfig(path string) (*config.File, error) {
	f, err := config.Read(path)
	if err != nil {
		return nil, usage(err)
	}
	return f, nil
}
