// Package e2e runs the real program against real connections, and looks at both ends.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// What the tests promise. Every tolerance is here.
const (
	// limit is the usual max_age.
	limit = 3 * time.Second
	// early is how long before the limit a connection must still be alive.
	early = 50 * time.Millisecond
	// late is how long after it both ends must be closed.
	late = 300 * time.Millisecond
	// pace is the time between the writes of a busy end.
	pace = 20 * time.Millisecond
	// patience is for what should happen at once, on a machine that has other things to do.
	patience = 10 * time.Second
)

// program is the path of curfew, built for this test run. The test cache knows nothing of it: use -count=1.
var program string

func TestMain(m *testing.M) { netnstest.Main(builder{m}) }

// A builder builds the program before the tests run.
type builder struct{ m *testing.M }

func (b builder) Run() int {
	dir, err := os.MkdirTemp("", "curfew-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "curfew")
	build := exec.Command("go", "build", "-o", program, "curfew")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %v\n%s", build, err, out)
		return 1
	}
	return b.m.Run()
}

// output collects what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// A process is a running curfew.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *output
	done chan struct{}
}

// start starts `curfew run` with the flags on the host, and waits until it is running.
func start(t *testing.T, h *netnstest.Host, flags ...string) *process {
	t.Helper()
	p := launch(t, h, append([]string{"run"}, flags...)...)
	p.await("msg=running")
	return p
}

// launch starts curfew on the host.
func launch(t *testing.T, h *netnstest.Host, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(program, args...), log: &output{}, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := h.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.signal(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("curfew %s:\n%s", strings.Join(args, " "), p.log)
		}
	})
	return p
}

// await waits for a text in the log.
func (p *process) await(text string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%q in the log", text), func() bool { return strings.Contains(p.log.String(), text) })
}

// signal sends a signal and waits for the end of the process.
func (p *process) signal(s syscall.Signal) int {
	p.t.Helper()
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("still running after %v", s)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends it as a service manager does.
func (p *process) stop() {
	p.t.Helper()
	if code := p.signal(syscall.SIGTERM); code != 0 {
		p.t.Errorf("exit code %d after SIGTERM\n%s", code, p.log)
	}
}

// A result is what a finished command gave.
type result struct {
	code           int
	stdout, stderr string
}

// curfew runs a command to its end.
func curfew(t *testing.T, h *netnstest.Host, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("curfew %s: %v", strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// succeed runs a command that must exit with 0, and answers its standard output.
func succeed(t *testing.T, h *netnstest.Host, args ...string) string {
	t.Helper()
	r := curfew(t, h, args...)
	if r.code != 0 {
		t.Fatalf("curfew %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// tool runs a program that is not ours, such as nft.
func tool(t *testing.T, h *netnstest.Host, input, name string, args ...string) string {
	t.Helper()
	out, err := h.Pipe(context.Background(), input, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}
