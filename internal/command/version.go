package command

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

func versionCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the version",
		Description: "Prints the version of the module, the commit that it was built from, and the Go version.\n\n   curfew version",
		Action: func(*cli.Context) error {
			fmt.Fprintln(env.Stdout, version())
			return nil
		},
	}
}

func version() string {
	number, commit := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		number = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = ", commit " + s.Value
			}
		}
	}
	return fmt.Sprintf("curfew %s%s, %s %s/%s", number, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
