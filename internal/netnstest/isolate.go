package netnstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outsideVar holds the inode of the network namespace that the process was started from.
const outsideVar = "CURFEW_OUTSIDE_NETNS"

// M is what testing.M offers.
type M interface{ Run() int }

// Main runs the tests inside namespaces of their own and exits with their exit code:
//
//	func TestMain(m *testing.M) { netnstest.Main(m) }
func Main(m M) { os.Exit(Wrap(m).Run()) }

// Wrap is Main for use with another TestMain helper: testscript.Main(netnstest.Wrap(m), commands).
func Wrap(m M) M { return isolated{m} }

type isolated struct{ inner M }

func (i isolated) Run() int {
	if Inside() {
		if err := loopbackUp(); err != nil {
			return complain(err)
		}
		return i.inner.Run()
	}
	code, err := again()
	if err != nil {
		return complain(err)
	}
	return code
}

func complain(err error) int {
	fmt.Fprintf(os.Stderr, "netnstest: no private network namespace: %v\n"+
		"netnstest: allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone,"+
		" kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces) or run as root\n", err)
	return 1
}

// again runs this process once more, inside, and passes signals on.
func again() (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	return isolate(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, signals)
}

// Inside tells whether this process was started by Main, Wrap or Isolate and is in their namespace.
func Inside() bool {
	outside, err := strconv.ParseUint(os.Getenv(outsideVar), 10, 64)
	if err != nil {
		return false
	}
	ino, err := namespaceID()
	return err == nil && ino != outside
}

// Isolate runs this executable with args in a new user and network namespace, in which it is root and Inside
// is true, and returns its exit code (128 + n after signal n). Root that may not make user namespaces gets
// a network namespace only. When ctx ends, the child gets SIGTERM, and SIGKILL 5 s later.
func Isolate(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	return isolate(ctx, args, stdin, stdout, stderr, nil)
}

func isolate(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, signals <-chan os.Signal) (int, error) {
	// Pdeathsig fires when the thread that started the child ends, so this goroutine keeps its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	build := func(attr *syscall.SysProcAttr) *exec.Cmd {
		cmd := self(ctx, args, attr)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
		return cmd
	}
	cmd, err := startIsolated(build)
	if err != nil {
		return 0, fmt.Errorf("start in a new namespace: %w", err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go forward(signals, cmd.Process, stop)
	return exitCode(cmd.Wait())
}

// startIsolated tries a user namespace first and, for root, does without one when that fails.
func startIsolated(build func(*syscall.SysProcAttr) *exec.Cmd) (*exec.Cmd, error) {
	cmd := build(userNamespace())
	err := cmd.Start()
	if err == nil || os.Geteuid() != 0 {
		return cmd, err
	}
	cmd = build(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL})
	return cmd, cmd.Start()
}

func userNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
}

// self is this executable with other arguments. It keeps argv[0]: fuzz workers and testscript look at it.
func self(ctx context.Context, args []string, attr *syscall.SysProcAttr) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	// Only root's PATH has nft and conntrack in it on Debian.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if ino, err := namespaceID(); err == nil {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", outsideVar, ino))
	}
	return cmd
}

func forward(signals <-chan os.Signal, child *os.Process, stop <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			_ = child.Signal(s) // it may have ended already
		case <-stop:
			return
		}
	}
}

func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// namespaceID is the inode of the calling thread's network namespace.
func namespaceID() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(ownNamespace, &st); err != nil {
		return 0, fmt.Errorf("read own network namespace: %w", err)
	}
	return st.Ino, nil
}
