package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"curfew/internal/netnstest"
)

func selftestCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "selftest",
		Usage: "prove in a private namespace, without root, that this kernel can do it",
		Description: `Makes a user and network namespace of its own, shows what the kernel has, and then limits real connections in it.
Nothing of this machine is touched.

   curfew selftest`,
		Action: func(c *cli.Context) error {
			if !netnstest.Inside() {
				return isolated(c.Context, env)
			}
			return selftest(c.Context, env)
		},
	}
}

// isolated runs this command again, inside of namespaces.
func isolated(ctx context.Context, env *Env) error {
	code, err := netnstest.Isolate(ctx, []string{"selftest"}, env.Stdin, env.Stdout, env.Stderr)
	if err != nil {
		return hint(err, "user namespaces may be forbidden here (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns): run it as root")
	}
	if code != ExitDone {
		return &failure{err: errors.New(""), code: code}
	}
	return nil
}

func selftest(ctx context.Context, env *Env) error {
	host, err := netnstest.OpenHost("selftest")
	if err != nil {
		return err
	}
	defer host.Close()
	if err := showCapabilities(env, host); err != nil {
		return err
	}
	return limitRealConnections(ctx, env, host)
}

// selftestLimit is the max_age of the real run.
const selftestLimit = 3 * time.Second

// limitRealConnections runs a reaper against a busy and an idle connection, over IPv4 and IPv6, some opened before it.
func limitRealConnections(ctx context.Context, env *Env, host *netnstest.Host) error {
	server, err := host.Serve("tcp", "[::]:0")
	if err != nil {
		return err
	}
	defer server.Close()
	fmt.Fprintf(env.Stdout, "\nreal connections, max_age %s:\n", selftestLimit)
	var trials []*trial
	open := func(when string) error {
		for _, address := range []string{"127.0.0.1", "[::1]"} {
			for _, busy := range []bool{true, false} {
				t, err := openTrial(host, server, address, busy, when)
				if err != nil {
					return err
				}
				trials = append(trials, t)
			}
		}
		return nil
	}
	if err := open("before"); err != nil {
		return err
	}
	started := time.Now()
	stop, err := startReaper(ctx, env, host, server.Port())
	if err != nil {
		return err
	}
	defer stop()
	for _, t := range trials {
		// What was open before has no birth time: its clock starts when the limit is installed.
		t.born, t.latest = started, time.Now()
	}
	if err := open("after"); err != nil {
		return err
	}
	failed := 0
	for _, t := range trials {
		if !t.report(env.Stdout) {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d connections did not end at their limit", failed, len(trials))
	}
	fmt.Fprintln(env.Stdout, "all ended at their limit: this kernel can do it")
	return nil
}

// startReaper runs this program in the host's namespace.
func startReaper(ctx context.Context, env *Env, host *netnstest.Host, port uint16) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, env, host, self, "run", "--port", fmt.Sprint(port), "--max-age", selftestLimit.String())
}
