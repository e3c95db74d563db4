package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/internal/netnstest"
	"curfew/reaper/sockdiag"
	"curfew/rules"
)

func TestMain(m *testing.M) {
	testscript.Main(netnstest.Wrap(m), map[string]func(){"curfew": curfew, "host": host})
}

// curfew is the program.
func curfew() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	os.Exit(Run(ctx, os.Args[1:], &Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Reload: reload, Clock: ctpolicy.SystemClock{},
		Config: os.Getenv("CURFEW_CONFIG"),
	}))
}

// hostVar names the network namespace of a script.
const hostVar = "SCRIPT_NETNS"

// host runs its arguments in the script's namespace: each script has one of its own.
func host() {
	// Exec ends all other threads, so the whole program that follows is where this thread is.
	runtime.LockOSThread()
	err := func() error {
		ns, err := os.Open(os.Getenv(hostVar))
		if err != nil {
			return err
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		path, err := exec.LookPath(os.Args[1])
		if err != nil {
			return err
		}
		return syscall.Exec(path, os.Args[1:], os.Environ())
	}()
	fmt.Fprintln(os.Stderr, "host:", err)
	os.Exit(125)
}

// TestScripts runs each file of testdata/script in a network namespace of its own.
func TestScripts(t *testing.T) {
	netnstest.KernelTest(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails":   fails,
			"ruleset": ruleset,
		},
	})
}

func setup(env *testscript.Env) error {
	h, err := netnstest.OpenHost("script")
	if err != nil {
		return err
	}
	env.Defer(func() { h.Close() })
	var ns *os.File
	if err := h.Do(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		return err
	}
	env.Defer(func() { ns.Close() })
	env.Setenv(hostVar, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()))
	return nil
}

// fails runs a program in the script's namespace, which must exit with the code, print nothing but an error, and change
// no rules.
//
//	fails CODE curfew ARGUMENT…
func fails(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: fails CODE PROGRAM ARGUMENT…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	before := listRuleset(ts)
	err = ts.Exec("host", args[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		ts.Fatalf("exit code 0, want %d", want)
	case !errors.As(err, &exit):
		ts.Fatalf("%v", err)
	case exit.ExitCode() != want:
		ts.Fatalf("exit code %d, want %d", exit.ExitCode(), want)
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if stdout != "" {
		ts.Fatalf("it printed to its standard output:\n%s", stdout)
	}
	if !strings.HasPrefix(stderr, "curfew: ") || strings.Contains(stderr, "\ncurfew: ") || strings.Contains(stderr, "panic") {
		ts.Fatalf("it does not tell one clear error:\n%s", stderr)
	}
	if after := listRuleset(ts); after != before {
		ts.Fatalf("rules changed from\n%s\nto\n%s", before, after)
	}
}

// listRuleset leaves out what passes by itself: counters and times.
func listRuleset(ts *testscript.TestScript) string {
	cmd := exec.Command("host", "nft", "-s", "list", "ruleset")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), hostVar + "=" + ts.Getenv(hostVar)}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	path, err := lookPath("host", ts.Getenv("PATH"))
	ts.Check(err)
	cmd.Path, cmd.Err = path, nil
	out, err := cmd.Output()
	if err != nil {
		ts.Fatalf("list the rules: %v: %s", err, &stderr)
	}
	return string(out)
}

func lookPath(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, name); dir != "" {
			if _, err := os.Stat(file); err == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("find %s: %w", name, fs.ErrNotExist)
}

// ruleset compares the rules with a file, or writes them into one that is not there.
//
//	ruleset FILE
func ruleset(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] ruleset FILE")
	}
	file, now := ts.MkAbs(args[0]), listRuleset(ts)
	before, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !neg {
		ts.Check(os.WriteFile(file, []byte(now), 0o600))
		return
	}
	ts.Check(err)
	if same := string(before) == now; same == neg {
		ts.Fatalf("the same rules: %v\n%s\nbefore:\n%s", same, now, before)
	}
}

// complaint is what a person reads about an error.
func complaint(err error) (code int, text string) {
	var b strings.Builder
	code = complain(&b, err)
	return code, b.String()
}

// TestMissing is what a person reads whose kernel lacks something.
func TestMissing(t *testing.T) {
	cause := fmt.Errorf("install table inet curfew: %w", unix.ENOENT)
	for _, lacking := range tableCapabilities() {
		list := tableCapabilities()
		for i := range list {
			list[i].probe = func() error { return nil }
			if list[i].name == lacking.name {
				list[i].probe = func() error { return unix.EOPNOTSUPP }
			}
		}
		code, text := complaint(explain(missing(cause, list)))
		if code != ExitFailed || !strings.Contains(text, "this kernel has no "+lacking.name+"\n") || !strings.Contains(text, "hint: it needs "+lacking.config+" (Linux "+lacking.since) {
			t.Errorf("without %s: exit code %d\n%s", lacking.name, code, text)
		}
	}
	t.Run("nothing", func(t *testing.T) {
		if err := missing(cause, nil); !errors.Is(err, cause) || err.Error() != cause.Error() {
			t.Errorf("got %v", err)
		}
	})
	t.Run("permission", func(t *testing.T) {
		list := []capability{{"nf_tables", "CONFIG_NF_TABLES", "5.2", func() error { return rules.ErrPermission }}}
		_, text := complaint(explain(missing(rules.ErrPermission, list)))
		if !strings.Contains(text, "as root") || strings.Contains(text, "CONFIG_") {
			t.Errorf("got %s", text)
		}
	})
}

// TestMissingNames makes sure that the list has what kernels are known to lack.
func TestMissingNames(t *testing.T) {
	var all []string
	for _, c := range capabilities() {
		if c.name == "" || c.since == "" || c.probe == nil {
			t.Errorf("incomplete: %+v", c)
		}
		all = append(all, c.config)
	}
	for _, config := range []string{
		"CONFIG_NF_TABLES", "CONFIG_NFT_CT", "CONFIG_NF_CONNTRACK_TIMEOUT", "CONFIG_NF_CONNTRACK_LABELS", "CONFIG_NFT_REJECT_INET",
		"CONFIG_NF_CT_NETLINK", "CONFIG_NF_CONNTRACK_TIMESTAMP", "CONFIG_INET_DIAG_DESTROY", "CONFIG_NFT_CONNLIMIT",
	} {
		if !strings.Contains(strings.Join(all, " ")+" ", config) {
			t.Errorf("no capability names %s", config)
		}
	}
}

func TestExplain(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"capability":             {unix.EPERM, "as root"},
		"rules":                  {rules.ErrPermission, "as root"},
		"sockets can't be ended": {sockdiag.ErrUnsupported, "CONFIG_INET_DIAG_DESTROY"},
		"a damaged table":        {rules.ErrDamaged, "curfew remove"},
		"too many rules":         {unix.EMSGSIZE, "net.core.wmem_max"},
		"a foreign table":        {rules.ErrForeign, "nft delete table inet curfew"},
		"another version's":      {rules.ErrFormat, "that version's `curfew remove`"},
		"no conntrack":           {fs.ErrNotExist, "CONFIG_NF_CONNTRACK "},
		"unknown":                {errors.New("x"), ""},
	} {
		err := fmt.Errorf("do: %w", tc.err)
		code, text := complaint(explain(err))
		first, hint, hinted := strings.Cut(text, "\nhint: ")
		if code != ExitFailed || strings.TrimSpace(first) != "curfew: "+err.Error() || !strings.Contains(hint, tc.want) || hinted != (tc.want != "") {
			t.Errorf("%s: exit code %d\n%s", name, code, text)
		}
	}
	if err := explain(nil); err != nil {
		t.Errorf("explains %v", err)
	}
}
