package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
	fmt.Fprintf(env.Stdout, "\nreal connections, max_age %s:\n", selftestLimit)
	local, err := limitRealConnections(ctx, env, &stage{"local", host, host, host, []string{"127.0.0.1", "[::1]"}})
	if err != nil {
		return err
	}
	forwarded, err := limitForwarded(ctx, env)
	if err != nil {
		return err
	}
	if failed := local + forwarded; failed > 0 {
		return fmt.Errorf("%d connections did not end at their limit", failed)
	}
	fmt.Fprintln(env.Stdout, "all ended at their limit: this kernel can do it")
	return nil
}

// A stage says where the ends of connections are, and where they are limited.
type stage struct {
	where                   string
	client, gateway, server *netnstest.Host
	addresses               []string // of the server
}

// limitForwarded has a gateway between client and server. Only the ip command can wire hosts.
func limitForwarded(ctx context.Context, env *Env) (failed int, err error) {
	if _, err := exec.LookPath("ip"); err != nil {
		fmt.Fprintln(env.Stdout, "  not tried: forwarded connections; the ip command (package iproute2) is missing")
		return 0, nil
	}
	path, err := netnstest.OpenPath()
	if err != nil {
		return 0, err
	}
	defer path.Close()
	addresses := []string{path.Far.B.Addr4.String(), "[" + path.Far.B.Addr6.String() + "]"}
	return limitRealConnections(ctx, env, &stage{"forwarded", path.Client, path.Gateway, path.Server, addresses})
}

// selftestLimit is the max_age of the real run.
const selftestLimit = 3 * time.Second

// limitRealConnections runs a reaper against a busy and an idle connection, over IPv4 and IPv6, some opened before it. It
// answers how many did not end as they should.
func limitRealConnections(ctx context.Context, env *Env, s *stage) (failed int, err error) {
	server, err := s.server.Serve("tcp", "[::]:0")
	if err != nil {
		return 0, err
	}
	defer server.Close()
	trials, err := s.open(server, "before")
	if err != nil {
		return 0, err
	}
	started := time.Now()
	stop, err := startReaper(ctx, env, s.gateway, server.Port())
	if err != nil {
		return 0, err
	}
	defer stop()
	for _, t := range trials {
		// What was open before has no birth time: its clock starts when the limit is installed. A forwarded one that
		// conntrack does not know is picked up at its next packet.
		t.born, t.latest = started, time.Now()
		t.touch()
	}
	after, err := s.open(server, "after")
	if err != nil {
		return 0, err
	}
	for _, t := range append(trials, after...) {
		if !t.report(env.Stdout) {
			failed++
		}
	}
	return failed, nil
}

// open opens a connection of each kind.
func (s *stage) open(server *netnstest.Server, when string) (trials []*trial, err error) {
	for _, address := range s.addresses {
		for _, busy := range []bool{true, false} {
			t, err := openTrial(s, server, address, busy, when)
			if err != nil {
				return nil, err
			}
			trials = append(trials, t)
		}
	}
	return trials, nil
}

// startReaper runs this program in the host's namespace.
func startReaper(ctx context.Context, env *Env, host *netnstest.Host, port uint16) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, env, host, self, "run", "--port", fmt.Sprint(port), "--max-age", selftestLimit.String())
}
