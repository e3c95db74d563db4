package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"curfew/ctpolicy"
)

// A walker goes through a file and collects what is wrong.
type walker struct {
	name  string
	file  *File
	items []*item
	errs  Errors
}

// at is something wrong at a node.
func (w *walker) at(n *yaml.Node, format string, args ...any) {
	w.wrong(n.Line, n.Column, fmt.Errorf(format, args...))
}

const policiesKey = "policies"

// root reads the whole file.
func (w *walker) root(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		switch {
		case n.Kind == yaml.SequenceNode:
			w.at(n, "the file is a list: write `policies:` above it")
		case isNull(n):
			w.at(n, "the file is empty: write `policies: []` for no policies")
		case n.Kind == yaml.ScalarNode:
			w.at(n, "%q: the file must have keys, of which policies is the first", n.Value)
		}
		return
	}
	words := settingWords()
	w.each(n, words, func(key, value *yaml.Node) {
		if key.Value == policiesKey {
			w.policies(value)
			return
		}
		s := findSetting(key.Value)
		if text, ok := w.scalar(key, value); ok {
			if err := s.Set(w.file, text); err != nil {
				w.at(value, "%s: %w", s.Name, err)
			}
		}
	}, func(key *yaml.Node) {
		word := similar(key.Value, policyWords())
		if word == "" || similar(key.Value, words) != "" {
			w.unknown(key, words)
			return
		}
		w.at(key, "%s: unknown key here: %s is a policy's, so it belongs below `policies:`", printable(key.Value), word)
	})
}

// settingWords are the keys of the file itself.
func settingWords() []string {
	words := []string{policiesKey}
	for _, s := range Settings {
		words = append(words, s.Name)
	}
	return words
}

// policyWords are the keys of a policy.
func policyWords() []string {
	words := make([]string, len(ctpolicy.Keys))
	for i, k := range ctpolicy.Keys {
		words[i] = k.Name
	}
	return words
}

// each calls one of two functions for each key of a mapping that is a word and was not there before. It answers whether all
// keys are words.
func (w *walker) each(n *yaml.Node, words []string, known func(key, value *yaml.Node), unknown func(key *yaml.Node)) (all bool) {
	first := map[string]int{}
	all = true
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == mergeTag {
			all = false
			if key.Kind != yaml.AliasNode && key.Tag != mergeTag { // these are forbidden
				w.at(key, "a key must be a word")
			}
			continue
		}
		if line := first[key.Value]; line > 0 {
			w.at(key, "%s: given twice, first on line %d", printable(key.Value), line)
			continue
		}
		first[key.Value] = key.Line
		if slices.Contains(words, key.Value) {
			known(key, value)
		} else {
			unknown(key)
		}
	}
	return all
}

func (w *walker) unknown(key *yaml.Node, words []string) {
	if word := similar(key.Value, words); word != "" {
		w.at(key, "%s: unknown key, did you mean %s?", printable(key.Value), word)
		return
	}
	w.at(key, "%s: unknown key, must be one of %s", printable(key.Value), strings.Join(words, ", "))
}

// scalar is the text of a value that is one.
func (w *walker) scalar(key, n *yaml.Node) (text string, ok bool) {
	switch {
	case n.Kind == yaml.AliasNode: // forbidden
	case n.Kind == yaml.SequenceNode:
		w.at(n, "%s: takes one value, not a list", key.Value)
	case n.Kind != yaml.ScalarNode:
		w.at(n, "%s: takes one value, not keys of its own", key.Value)
	case isNull(n) || n.Value == "":
		w.at(n, "%s: has no value", key.Value)
	default:
		return n.Value, true
	}
	return "", false
}

// isNull tells whether a value is missing: nothing, ~ or null.
func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (w *walker) policies(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode: // forbidden
	case isNull(n):
		w.at(n, "policies: has no value: write `policies: []` for no policies")
	case n.Kind != yaml.SequenceNode:
		w.at(n, "policies: must be a list: begin each policy with `- `")
	default:
		for i, child := range n.Content {
			w.policy(i+1, child)
		}
		w.conflicts()
	}
}

// policy reads the policy of this number.
func (w *walker) policy(number int, n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode: // forbidden
	case isNull(n):
		w.at(n, "policy %d: is empty: give it a port and a limit", number)
	case n.Kind != yaml.MappingNode:
		w.at(n, "policy %d: must have keys, for example port and max_age", number)
	default:
		it := &item{walker: w, number: number, node: n, keys: map[string]*yaml.Node{}, failed: map[string]bool{}}
		it.read()
		w.items = append(w.items, it)
		w.file.Policies = append(w.file.Policies, it.policy)
	}
}

// conflicts compares the policies. What is not known of one, as it could not be read, is no reason to find fault with others.
func (w *walker) conflicts() {
	policies := make([]ctpolicy.Policy, len(w.items))
	for i, it := range w.items {
		policies[i] = it.policy
		if it.failed["name"] {
			policies[i].Name = fmt.Sprintf("policy %d", it.number)
		}
		if it.coverageFailed() {
			policies[i].Ports = nil
		}
	}
	for _, c := range ctpolicy.Conflicts(policies) {
		w.items[c.Policy].conflict(c.Problem)
	}
}
