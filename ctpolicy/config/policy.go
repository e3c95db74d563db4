package config

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"curfew/ctpolicy"
)

// An item is one policy of the file.
type item struct {
	*walker
	number int
	node   *yaml.Node
	policy ctpolicy.Policy
	keys   map[string]*yaml.Node // where each key is
	failed map[string]bool       // keys whose value is not known; anything for a key that nobody knows
}

// anything stands for each key.
const anything = ""

// read reads the keys, and then looks at the policy as a whole.
func (it *item) read() {
	words := policyWords()
	all := it.each(it.node, words, func(key, value *yaml.Node) {
		it.keys[key.Value] = key
		k := ctpolicy.FindKey(key.Value)
		text, ok := it.value(k, key, value)
		if !ok {
			it.fail(k)
			return
		}
		if err := k.Set(&it.policy, text); err != nil {
			it.at(value, "%s: %w", k.Name, err)
			it.fail(k)
		}
	}, func(key *yaml.Node) {
		it.unknownKey(key, words)
	})
	if !all {
		it.failed[anything] = true
	}
	for _, problem := range it.whole().Problems() {
		missing := problem.Key == ""
		if (missing && all) || (!missing && !it.failed[problem.Key]) {
			it.problem(problem)
		}
	}
}

func (it *item) unknownKey(key *yaml.Node, words []string) {
	if findSetting(key.Value) != nil {
		it.at(key, "%s: unknown key here: %s is not a policy's, so it belongs beside `policies:`", key.Value, key.Value)
		return
	}
	it.unknown(key, words)
	it.failed[anything] = true
	if word := similar(key.Value, words); word != "" && it.keys[word] == nil {
		it.fail(ctpolicy.FindKey(word))
	}
}

// fail notes that the value of a key is not known.
func (it *item) fail(k *ctpolicy.Key) { it.failed[k.Name] = true }

// whole is the policy with an example for what is not known, so that nothing is said to be missing that is there.
func (it *item) whole() *ctpolicy.Policy {
	for i := range ctpolicy.Keys {
		if k := &ctpolicy.Keys[i]; it.failed[k.Name] {
			_ = k.Set(&it.policy, k.Example)
		}
	}
	it.policy.SetDefaultName()
	if it.policy.Name == "" || (it.keys["name"] == nil && it.failed["port"]) {
		it.failed["name"] = true // for want of a port
	}
	return &it.policy
}

// coverageFailed tells that it is not known which connections the policy covers.
func (it *item) coverageFailed() bool {
	return it.failed[anything] || it.failed["port"] || it.failed["direction"] || it.failed["from"] || it.failed["to"] || it.failed["except"]
}

// problem is one of the policy: at its key, or at the policy.
func (it *item) problem(p ctpolicy.Problem) {
	if key := it.keys[p.Key]; key != nil {
		it.at(key, "%w", p.Err)
		return
	}
	it.at(it.node, "%s: %w", it.title(), p.Err)
}

// conflict is a problem that the policy has with earlier ones.
func (it *item) conflict(p ctpolicy.Problem) {
	n := it.node
	if key := it.keys[p.Key]; key != nil {
		n = key
	}
	it.at(n, "%s: %w", it.title(), p.Err)
}

// title is what a person knows the policy by.
func (it *item) title() string {
	if it.failed["name"] {
		return fmt.Sprintf("policy %d", it.number)
	}
	return fmt.Sprintf("policy %q", it.policy.Name)
}

// value is a value as the key's Set reads it; each part of a list has been read alone before, to tell where it is.
func (it *item) value(k *ctpolicy.Key, key, n *yaml.Node) (text string, ok bool) {
	if !k.List || n.Kind != yaml.SequenceNode {
		text, ok = it.scalar(key, n)
		if ok && k.List {
			ok = it.parts(k, n, text)
		}
		return text, ok
	}
	if len(n.Content) == 0 {
		it.at(n, "%s: the list is empty: leave the key out", k.Name)
		return "", false
	}
	var list []string
	for _, child := range n.Content {
		text, good := it.scalar(key, child)
		if good && it.parts(k, child, text) {
			list = append(list, text)
		}
	}
	return strings.Join(list, ","), len(list) == len(n.Content)
}

// parts reads the parts of a list in one scalar.
func (it *item) parts(k *ctpolicy.Key, n *yaml.Node, text string) (ok bool) {
	ok = true
	for part := range strings.SplitSeq(text, ",") {
		if err := k.Set(&ctpolicy.Policy{}, part); err != nil {
			it.at(n, "%s: %w", k.Name, err)
			ok = false
		}
	}
	return ok
}
