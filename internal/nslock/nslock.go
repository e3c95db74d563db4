// Package nslock lets one process at a time change something in a network namespace. The lock is an advisory one (flock(2))
// on the namespace itself: it needs no file, other namespaces don't see it, and it ends with its holder.
package nslock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy says that another process has the lock. Anybody in the namespace may take it, so its holder need not be one of ours.
var ErrBusy = errors.New("another process holds the lock of this network namespace")

// pollEvery is the time between two tries: flock can't be given up while it waits.
const pollEvery = 10 * time.Millisecond

// Take waits for the lock of the calling thread's network namespace, at most for so long. The lock is to be closed.
func Take(ctx context.Context, patience time.Duration) (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lock this network namespace: %w", err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(pollEvery) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return f, nil
		case errors.Is(err, unix.EWOULDBLOCK) && ctx.Err() == nil && time.Now().Before(deadline):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			err = ErrBusy
		}
		f.Close()
		return nil, fmt.Errorf("lock this network namespace: %w", err)
	}
}
