// Package config reads the configuration file. What its keys mean is written in ctpolicy.Keys and in Settings; this package
// knows only where in the file they are.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"curfew/ctpolicy"
)

//go:generate go run ./describe ../..

// DefaultPath is the file that is read where none is named.
const DefaultPath = "/etc/curfew/curfew.yaml"

// maxSize is far more than a file needs that a person wrote.
const maxSize = 4 << 20

// A File is what a configuration file says; what it does not say has its default.
type File struct {
	// Policies are in the order of the file. Each is good by itself, and so are all of them together.
	Policies []ctpolicy.Policy
	// Reset ends connections that are open already.
	Reset bool
	// Adopt is how long forwarded connections that conntrack does not know are picked up.
	Adopt time.Duration
	// RegisterSize is how many flows the fallback can hold for each of IPv4 and IPv6.
	RegisterSize uint32
	// Mark is the packet mark of challenges.
	Mark uint32
}

// New is a file that says nothing.
func New() *File {
	return &File{Adopt: 5 * time.Minute, RegisterSize: 65536, Mark: 0x63003000}
}

// Read reads a file. What is wrong with its contents is of type Errors.
func Read(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse reads what a file of this name contains. Every error is of type Errors: all that is wrong, in the order of the file.
func Parse(name string, data []byte) (*File, error) {
	w := &walker{name: name, file: New()}
	w.parse(data)
	if err := w.sorted(); len(err) > 0 {
		return nil, err
	}
	return w.file, nil
}

func (w *walker) parse(data []byte) {
	if len(data) > maxSize {
		w.wrong(1, 1, fmt.Errorf("the file is larger than %d bytes", maxSize))
		return
	}
	if !w.checkText(data) {
		return
	}
	root := w.load(data)
	switch {
	case root == nil && len(w.errs) == 0:
		w.wrong(1, 1, errors.New("the file is empty: write `policies: []` for no policies"))
	case root != nil:
		w.forbid(root)
		w.root(root)
	}
}
