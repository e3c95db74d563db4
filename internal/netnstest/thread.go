package netnstest

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const ownNamespace = "/proc/thread-self/ns/net"

var errGoexit = errors.New("function left its goroutine (t.Fatal belongs outside of Do)")

// onOwnThread runs fn on a thread that dies afterwards, so fn may move it to another namespace for good.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go runLocked(fn, done)
	return <-done
}

// runLocked never unlocks: the runtime ends a thread whose goroutine exits while locked to it. The main thread
// can't end, it would be parked in fn's namespace, so it is held here while another thread does the work.
func runLocked(fn func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		defer runtime.UnlockOSThread()
		done <- onOwnThread(fn)
		return
	}
	err := errGoexit
	defer func() { done <- err }()
	err = fn()
}

// loopbackUp sets lo up in the calling thread's namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
