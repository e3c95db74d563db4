package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// An Error is something wrong at one place of the file.
type Error struct {
	File         string
	Line, Column int // from 1; columns are characters
	Err          error
}

// Error is "file:line:column: what is wrong".
func (e Error) Error() string { return fmt.Sprintf("%s:%d:%d: %v", e.File, e.Line, e.Column, e.Err) }

// Unwrap is what is wrong.
func (e Error) Unwrap() error { return e.Err }

// Errors are all that is wrong with a file, in the order of their places.
type Errors []Error

// Error has a line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap is all of them.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i := range e {
		errs[i] = e[i]
	}
	return errs
}

func (w *walker) wrong(line, column int, err error) {
	w.errs = append(w.errs, Error{w.name, max(line, 1), max(column, 1), err})
}

// sorted are the errors in order, those of one place in the order in which they were found.
func (w *walker) sorted() Errors {
	slices.SortStableFunc(w.errs, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return w.errs
}
