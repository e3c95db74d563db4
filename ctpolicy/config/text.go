package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// checkText finds the first byte that is no text. The YAML reader would refuse it, too, but not say where it is.
func (w *walker) checkText(data []byte) bool {
	line, column := 1, 1
	for rest := data; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			w.wrong(line, column, fmt.Errorf("byte 0x%02x: the file must be UTF-8", rest[0]))
			return false
		case unicode.IsControl(r) && r != '\t' && r != '\n' && r != '\r', r == 0xfffe, r == 0xffff:
			w.wrong(line, column, fmt.Errorf("control character U+%04X: the file must be plain text", r))
			return false
		case r == '\n':
			line, column = line+1, 1
		case r != '\ufeff' || len(rest) < len(data): // a byte order mark at the start is no column
			column++
		}
		rest = rest[size:]
	}
	return true
}

// load is the root of the one document, or nil.
func (w *walker) load(data []byte) *yaml.Node {
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		w.syntax(err)
		return nil
	}
	var documents []*yaml.Node
	for {
		document := &yaml.Node{}
		err := loader.Load(document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			w.syntax(err)
			return nil
		}
		documents = append(documents, document)
	}
	if len(documents) == 0 {
		return nil
	}
	if len(documents) > 1 {
		w.wrong(documents[1].Line, documents[1].Column, errors.New("another document begins: a file has one, so take away the line `---`"))
	}
	if len(documents[0].Content) == 0 {
		return nil
	}
	return documents[0].Content[0]
}

// syntax tells what the YAML parser does not understand, and where it began where that is on another line.
func (w *walker) syntax(err error) {
	e := &yaml.LoadError{}
	if !errors.As(err, &e) {
		w.wrong(1, 1, fmt.Errorf("not YAML: %w", err))
		return
	}
	text := "not YAML: " + e.Message
	if e.ContextMsg != "" {
		text += " " + e.ContextMsg
		if e.ContextMark.Line != e.Mark.Line {
			text += fmt.Sprintf(" that begins on line %d", e.ContextMark.Line)
		}
	}
	if e.Stage == yaml.ComposerStage {
		text += "; aliases can't be used, and a text that begins with * needs quotes"
	}
	w.wrong(e.Mark.Line, e.Mark.Column, errors.New(text))
}

// forbid finds what makes a file mean something else than it seems to. Aliases are not followed.
func (w *walker) forbid(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		w.at(n, "*%s: aliases can't be used: write the value out", printable(n.Value))
	case n.Anchor != "":
		w.at(n, "&%s: anchors can't be used: write the value out where it is needed", printable(n.Anchor))
	case n.Tag == mergeTag:
		w.at(n, "<<: merge keys can't be used: write the keys out")
	case n.Style&yaml.TaggedStyle != 0:
		w.at(n, "%s: tags can't be used", printable(n.Tag))
	}
	for _, child := range n.Content {
		w.forbid(child)
	}
}

const mergeTag = "!!merge"
