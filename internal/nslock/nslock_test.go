package nslock_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"curfew/internal/netnstest"
	"curfew/internal/nslock"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func take(h *netnstest.Host, ctx context.Context, patience time.Duration) (f *os.File, err error) {
	err = h.Do(func() (err error) { f, err = nslock.Take(ctx, patience); return err })
	return f, err
}

func TestOneAtATime(t *testing.T) {
	a, b := netnstest.NewHost(t, "a"), netnstest.NewHost(t, "b")
	ctx := context.Background()
	first, err := take(a, ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := take(a, ctx, 20*time.Millisecond); !errors.Is(err, nslock.ErrBusy) {
		t.Errorf("a second one: %v, want ErrBusy", err)
	}
	if other, err := take(b, ctx, 0); err != nil {
		t.Errorf("in another namespace: %v", err)
	} else {
		other.Close()
	}
	waited := make(chan error)
	go func() {
		f, err := take(a, ctx, 10*time.Second)
		if err == nil {
			f.Close()
		}
		waited <- err
	}()
	first.Close()
	if err := <-waited; err != nil {
		t.Errorf("after the first one: %v", err)
	}
}

func TestGivesUpWithItsContext(t *testing.T) {
	h := netnstest.NewHost(t, "h")
	held, err := take(h, context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := take(h, ctx, time.Hour); !errors.Is(err, nslock.ErrBusy) {
		t.Errorf("%v, want ErrBusy", err)
	}
}
