// Package command is curfew's command line: one file per subcommand. It is the only place that knows the reaper, the
// rules and the policies, and the only one that talks to a person.
package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
)

// The exit codes.
const (
	ExitDone         = 0
	ExitFailed       = 1
	ExitUsage        = 2
	ExitNotInstalled = 3 // of status only
)

// An Env is what the commands may use of their process.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Reload receives when the process is asked to read its configuration again.
	Reload <-chan os.Signal
	// Clock is the time.
	Clock ctpolicy.Clock
	// Config is the file that is read where none is named; "" is config.DefaultPath.
	Config string

	started time.Time // when Run was called
}

func (e *Env) config() string { return cmp.Or(e.Config, config.DefaultPath) }

func (e *Env) logger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(e.Stderr, &slog.HandlerOptions{Level: level}))
}

// A failure is an error with what a person needs to know beside it.
type failure struct {
	err  error
	hint string
	code int
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// usage is bad usage: exit code 2.
func usage(err error) error { return &failure{err: err, code: ExitUsage} }

// hint adds what to do about an error.
func hint(err error, format string, args ...any) error {
	return &failure{err: err, hint: fmt.Sprintf(format, args...), code: ExitFailed}
}

// Run executes one command line, without the program's name, and answers the exit code. It ends when the context does.
func Run(ctx context.Context, args []string, env *Env) int {
	env.started = time.Unix(0, env.Clock.Now().Wall)
	app := newApp(env)
	return complain(env.Stderr, app.RunContext(ctx, append([]string{"curfew"}, args...)))
}

// complain tells a person about an error, and answers the exit code.
func complain(w io.Writer, err error) int {
	if err == nil {
		return ExitDone
	}
	f := &failure{err: err, code: ExitFailed}
	errors.As(err, &f)
	if lines := (config.Errors{}); errors.As(err, &lines) {
		for _, line := range lines {
			fmt.Fprintf(w, "curfew: %v\n", line)
		}
	} else if f.err != nil && f.err.Error() != "" {
		fmt.Fprintf(w, "curfew: %v\n", err)
	}
	if f.hint != "" {
		fmt.Fprintf(w, "hint: %s\n", f.hint)
	}
	return f.code
}

const description = `curfew ends TCP connections at their limit: busy or idle, IPv4 or IPv6, at both ends.

   sudo curfew run --port 8080 --max-age 30s      limit connections to port 8080 to 30 seconds, until Ctrl-C
   sudo curfew apply --port 389,636 --max-age 1h  install the limit in the kernel, without a process
   curfew selftest                                see whether this kernel can do it; needs no root`

func newApp(env *Env) *cli.App {
	app := &cli.App{
		Name:            "curfew",
		Usage:           "a maximum lifetime for TCP connections",
		Description:     description,
		Reader:          env.Stdin,
		Writer:          env.Stdout,
		ErrWriter:       env.Stderr,
		HideHelpCommand: true,
		HideVersion:     true,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage(fmt.Errorf("unknown command %q: `curfew --help` lists the commands", c.Args().First()))
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			applyCommand(env), runCommand(env), reapCommand(env), statusCommand(env),
			checkCommand(env), removeCommand(env), selftestCommand(env), versionCommand(env),
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		c.Action = withoutArguments(c.Action)
	}
	return app
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return &failure{err: err, code: ExitUsage, hint: fmt.Sprintf("`%s --help` shows the flags", c.Command.HelpName)}
}

// withoutArguments refuses what is not a flag: flags after it would be ignored.
func withoutArguments(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			f := &failure{err: fmt.Errorf("unexpected argument %q", c.Args().First()), code: ExitUsage}
			f.hint = fmt.Sprintf("`%s --help` shows the flags", c.Command.HelpName)
			if slices.Contains(c.FlagNames(), "port") {
				f.hint = "write lists with commas and without spaces: --port 389,636"
			}
			return f
		}
		return action(c)
	}
}
