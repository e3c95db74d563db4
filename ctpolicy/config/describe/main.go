// Command describe writes what is generated from the tables of keys: the JSON Schema of the configuration file, and the
// tables in its documentation.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// The generated files, below the module's folder.
const (
	schemaFile = "contrib/curfew.schema.json"
	docFile    = "docs/configuration.md"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: describe FOLDER")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "describe:", err)
		os.Exit(1)
	}
}

// write writes all files below a folder.
func write(folder string) error {
	text, err := schema()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, schemaFile), text, 0o644); err != nil {
		return err
	}
	path := filepath.Join(folder, docFile)
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	doc, err = withTables(doc)
	if err != nil {
		return err
	}
	return os.WriteFile(path, doc, 0o644)
}
