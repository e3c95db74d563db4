package netnstest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// strays lists this process's threads that are in another namespace than own.
func strays(own string) (out []string) {
	links, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, l := range links {
		if ns, err := os.Readlink(l); err == nil && ns != own {
			out = append(out, l+" "+ns)
		}
	}
	return out
}

func TestNoThreadStaysInAHost(t *testing.T) {
	// The outer test thread may be any; ask the process's main thread, which never moves.
	own, err := os.Readlink("/proc/self/task/" + uitoa(uint64(os.Getpid())) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if ino, err := namespaceID(); err != nil || !strings.Contains(own, uitoa(ino)) {
		t.Fatalf("the main thread is in %s, this one in %d (%v)", own, ino, err)
	}
	h := NewHost(t, "h")
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if err := h.Do(func() error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h.Close()
	deadline := time.Now().Add(5 * time.Second)
	for len(strays(own)) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("threads in a foreign namespace: %v", strays(own))
		}
		time.Sleep(time.Millisecond)
	}
}

func TestStraysAreSeen(t *testing.T) {
	own, err := os.Readlink(ownNamespace)
	if err != nil {
		t.Fatal(err)
	}
	err = NewHost(t, "h").Do(func() error {
		if len(strays(own)) == 0 {
			return errors.New("a thread inside a host was not seen")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMainThreadIsSpared(t *testing.T) {
	h := NewHost(t, "h")
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			err := h.Do(func() error {
				if unix.Gettid() == os.Getpid() {
					return errors.New("fn ran on the main thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestDoCallsRunSideBySide(t *testing.T) {
	h := NewHost(t, "h")
	first, second := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	for mine, other := range map[chan struct{}]chan struct{}{first: second, second: first} {
		wg.Go(func() {
			_ = h.Do(func() error {
				close(mine)
				select {
				case <-other:
				case <-time.After(5 * time.Second):
					t.Error("one Do call waits for another")
				}
				return nil
			})
		})
	}
	wg.Wait()
}

func TestDoSurvivesGoexit(t *testing.T) {
	h := NewHost(t, "h")
	leave := t.Context()
	err := h.Do(func() error {
		exitGoroutine(leave)
		return nil
	})
	if !errors.Is(err, errGoexit) {
		t.Fatalf("got %v, want %v", err, errGoexit)
	}
}
