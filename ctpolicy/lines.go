package ctpolicy

import (
	"fmt"
	"strings"
)

// Lines are the policy as text: "ldap: port 389,636, max_age 1h", as many lines as it takes with at most so many bytes each. A
// long list goes on in the next line. ParseLines reads them back.
func (p *Policy) Lines(most int) (lines []string) {
	line := ""
	for _, word := range p.words(most - len(p.Name) - len(": ")) {
		if line != "" && len(line)+len(", ")+len(word) > most {
			lines, line = append(lines, line), ""
		}
		if line == "" {
			line = p.Name + ": " + word
			continue
		}
		line += ", " + word
	}
	return append(lines, line)
}

// words are the keys with their values; a list that is too long comes in parts.
func (p *Policy) words(most int) (words []string) {
	for i := range Keys {
		k := &Keys[i]
		value := k.Get(p)
		for value != "" && k.Name != "name" {
			part := value
			if room := most - len(k.Name) - 1; k.List && len(part) > room {
				part = part[:max(strings.LastIndexByte(part[:room+1], ','), 0)]
			}
			words = append(words, k.Name+" "+part)
			value = strings.TrimPrefix(value[len(part):], ",")
		}
	}
	return words
}

// ParseLines reads the policies that Lines wrote, in their order.
func ParseLines(lines []string) (policies []Policy, err error) {
	var values []map[string]string
	for _, line := range lines {
		name, rest, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("%q is not part of a policy", line)
		}
		if last := len(policies) - 1; last < 0 || policies[last].Name != name {
			policies = append(policies, Policy{Name: name})
			values = append(values, map[string]string{})
		}
		for part := range strings.SplitSeq(rest, ", ") {
			key, value, _ := strings.Cut(part, " ")
			if before, ok := values[len(values)-1][key]; ok {
				value = before + "," + value
			}
			values[len(values)-1][key] = value
		}
	}
	for i := range policies {
		if err := policies[i].set(values[i]); err != nil {
			return nil, fmt.Errorf("policy %s: %w", policies[i].Name, err)
		}
	}
	return policies, nil
}

func (p *Policy) set(values map[string]string) error {
	for name, value := range values {
		k := FindKey(name)
		if k == nil {
			return fmt.Errorf("%q is not a key", name)
		}
		if err := k.Set(p, value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
