package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// TB is the part of testing.TB that is used here.
type TB interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// patience is how long a wrapper waits for something that should be there in a moment.
const patience = 10 * time.Second

// logVar names a file that lists the tests that used a real kernel, so that CI can tell when none ran.
const logVar = "CURFEW_KERNEL_TESTS_LOG"

// NewHost is OpenHost for a test, which closes it.
func NewHost(t TB, name string) *Host {
	t.Helper()
	KernelTest(t)
	h := must(OpenHost(name))(t)
	t.Cleanup(func() { h.Close() })
	return h
}

// NewPath is OpenPath for a test, which closes it.
func NewPath(t TB) *Path {
	t.Helper()
	KernelTest(t)
	p := must(OpenPath())(t)
	t.Cleanup(p.Close)
	return p
}

// Link is Join for a test.
func Link(t TB, a, b *Host, n int) Wire {
	t.Helper()
	return must(Join(a, b, n))(t)
}

// NewBridge is AddBridge for a test.
func NewBridge(t TB, h *Host, n int) *Bridge {
	t.Helper()
	return must(h.AddBridge(n))(t)
}

// Join is Attach for a test.
func (b *Bridge) Join(t TB, c *Host) End {
	t.Helper()
	return must(b.Attach(c))(t)
}

// Record is Capture for a test.
func (h *Host) Record(t TB) *Capture {
	t.Helper()
	c := must(h.Capture())(t)
	t.Cleanup(c.Close)
	return c
}

// Listen is Serve for a test.
func (h *Host) Listen(t TB, network, addr string) *Server {
	t.Helper()
	s := must(h.Serve(network, addr))(t)
	t.Cleanup(func() { s.Close() })
	return s
}

// Dial is Connect for a test.
func (h *Host) Dial(t TB, network, addr string, opts DialOptions) *Conn {
	t.Helper()
	c := must(h.Connect(network, addr, opts))(t)
	t.Cleanup(func() { c.Close() })
	return c
}

// Next is Accept for a test.
func (s *Server) Next(t TB) *Conn {
	t.Helper()
	return must(s.Accept(patience))(t)
}

// Conn is Peer for a test.
func (s *Server) Conn(t TB, client *Conn) *Conn {
	t.Helper()
	return must(s.Peer(client, patience))(t)
}

func must[T any](v T, err error) func(TB) T {
	return func(t TB) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%v", err)
		}
		return v
	}
}

// KernelTest notes that t uses a real kernel. NewHost and NewPath do it; a test that uses neither,
// such as a testscript run under Wrap, calls it.
func KernelTest(t TB) {
	t.Helper()
	path := os.Getenv(logVar)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		t.Fatalf("log kernel test: %v", err)
	}
	defer f.Close()
	// One write: several test binaries may append to this file.
	if _, err := fmt.Fprintf(f, "%s %s\n", filepath.Base(os.Args[0]), t.Name()); err != nil {
		t.Fatalf("log kernel test: %v", err)
	}
}
