package command

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"curfew/internal/netnstest"
)

// A trial is one connection of the selftest, with both its ends.
type trial struct {
	what           string
	client, server *netnstest.Conn
	// Its clock started between born and latest.
	born, latest time.Time
}

func openTrial(s *stage, server *netnstest.Server, address string, busy bool, when string) (*trial, error) {
	client, err := s.client.Connect("tcp", fmt.Sprintf("%s:%d", address, server.Port()), netnstest.DialOptions{})
	if err != nil {
		return nil, err
	}
	peer, err := server.Peer(client, 5*time.Second)
	if err != nil {
		return nil, err
	}
	family, pace := "IPv4", "idle"
	if strings.Contains(address, "::") {
		family = "IPv6"
	}
	if busy {
		pace = "busy"
		client.Busy(20 * time.Millisecond)
		peer.Busy(20 * time.Millisecond)
	}
	what := fmt.Sprintf("%s, %s, %s, opened %s", s.where, family, pace, when)
	return &trial{what, client, peer, client.Started, client.Opened}, nil
}

// touch sends one byte, so that a gateway learns of the connection. Its clock starts now at the latest.
func (t *trial) touch() {
	if _, err := t.client.Write([]byte{'.'}); err == nil {
		t.latest = time.Now()
	}
}

const (
	selftestGrace = 300 * time.Millisecond
	selftestWait  = 5 * time.Second
)

// report waits for both ends, and tells whether they ended in time.
func (t *trial) report(w io.Writer) bool {
	good := true
	line := t.what
	for i, end := range []*netnstest.Conn{t.client, t.server} {
		name := [...]string{"client", "server"}[i]
		if err := end.WaitEnd(selftestWait); err != nil {
			line, good = line+fmt.Sprintf("; %s still open", name), false
			continue
		}
		age := end.EndedAt().Sub(t.born)
		line += fmt.Sprintf("; %s ended after %.3f s", name, age.Seconds())
		good = good && age >= selftestLimit && end.EndedAt().Sub(t.latest) <= selftestLimit+selftestGrace
	}
	verdict := "ok    "
	if !good {
		verdict = "FAILED"
	}
	fmt.Fprintf(w, "  %s %s\n", verdict, line)
	return good
}

// startProcess starts a reaper and waits until it says that it is running.
func startProcess(ctx context.Context, env *Env, host *netnstest.Host, name string, args ...string) (stop func(), err error) {
	running := &watcher{word: "msg=running", seen: make(chan struct{})}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = running, running
	if err := host.Start(cmd); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case <-running.seen:
		return func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-exited
		}, nil
	case err := <-exited:
		return nil, fmt.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, running.text())
	case <-time.After(selftestWait):
		_ = cmd.Process.Kill()
		return nil, fmt.Errorf("%s %s: not running after %s\n%s", name, strings.Join(args, " "), selftestWait, running.text())
	}
}

// A watcher closes seen when a word was written.
type watcher struct {
	word string
	seen chan struct{}

	mu     sync.Mutex
	buffer bytes.Buffer
	done   bool
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buffer.Write(p)
	if !w.done && strings.Contains(w.buffer.String(), w.word) {
		w.done = true
		close(w.seen)
	}
	return len(p), nil
}

func (w *watcher) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buffer.String()
}
