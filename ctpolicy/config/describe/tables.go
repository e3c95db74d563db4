package main

import (
	"bytes"
	"fmt"
	"strings"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
)

// withTables puts the tables between their marks.
func withTables(doc []byte) ([]byte, error) {
	for name, table := range map[string]string{"keys": keyTable(), "settings": settingTable()} {
		begin, end := []byte("<!-- "+name+" -->\n"), []byte("<!-- end of "+name+" -->")
		before, rest, ok := bytes.Cut(doc, begin)
		_, after, ok2 := bytes.Cut(rest, end)
		if !ok || !ok2 {
			return nil, fmt.Errorf("%s has no place for the table of %s", docFile, name)
		}
		doc = bytes.Join([][]byte{before, begin, []byte(table), end, after}, nil)
	}
	return doc, nil
}

func keyTable() string {
	var b strings.Builder
	b.WriteString("| key | for example | meaning |\n| --- | --- | --- |\n")
	for _, k := range ctpolicy.Keys {
		list := ""
		if k.List {
			list = " (list)"
		}
		fmt.Fprintf(&b, "| `%s` | `%s`%s | %s |\n", k.Name, k.Example, list, cell(k.Usage))
	}
	return b.String()
}

func settingTable() string {
	var b strings.Builder
	b.WriteString("| key | default | meaning |\n| --- | --- | --- |\n")
	for _, s := range config.Settings {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", s.Name, s.Default(), cell(s.Usage))
	}
	return b.String()
}

func cell(usage string) string { return strings.ReplaceAll(plain(usage), "|", `\|`) }
