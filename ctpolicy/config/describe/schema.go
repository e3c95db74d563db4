package main

import (
	"bytes"
	"encoding/json"
	"strings"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
)

type object = map[string]any

// schema is the JSON Schema of the file, draft 2020-12. It knows the shape of values, and not all that Parse knows.
func schema() ([]byte, error) {
	keys, limits := object{}, []any{}
	for i := range ctpolicy.Keys {
		k := &ctpolicy.Keys[i]
		keys[k.Name] = keySchema(k)
		if isLimit(k) {
			limits = append(limits, object{"required": []string{k.Name}})
		}
	}
	top := object{"policies": object{
		"description": "a connection belongs to the first policy that matches",
		"type":        "array", "items": object{"$ref": "#/$defs/policy"},
	}}
	for i := range config.Settings {
		s := &config.Settings[i]
		value := scalar(s.Syntax, s.Words, func(v string) error { return s.Set(config.New(), v) })
		value["description"], value["default"] = plain(s.Usage), s.Default()
		top[s.Name] = value
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(object{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "curfew",
		"type": "object", "minProperties": 1, "additionalProperties": false, "properties": top,
		"$defs": object{"policy": object{
			"type": "object", "additionalProperties": false, "properties": keys,
			"required": []string{"port"}, "anyOf": limits,
		}},
	})
	return b.Bytes(), err
}

func keySchema(k *ctpolicy.Key) object {
	value := scalar(k.Syntax, k.Words, func(v string) error { return k.Set(&ctpolicy.Policy{}, v) })
	if k.List {
		part := strings.Trim(k.Syntax, "^$")
		value = scalar(`^`+part+`(\s*,\s*`+part+`)*$`, nil, func(v string) error { return k.Set(&ctpolicy.Policy{}, v) })
		value = object{"anyOf": []any{value, object{"type": "array", "minItems": 1, "items": value}}}
	}
	value["description"], value["examples"] = plain(k.Usage), []string{k.Example}
	return value
}

// scalar describes one value. YAML readers take some texts for numbers.
func scalar(syntax string, words []string, set func(value string) error) object {
	if words != nil {
		return object{"enum": words}
	}
	text := object{"type": "string", "pattern": syntax}
	switch {
	case set("64") == nil:
		return object{"anyOf": []any{text, object{"type": "integer", "minimum": 1}}}
	case set("0") == nil:
		return object{"anyOf": []any{text, object{"const": 0}}}
	}
	return text
}

// isLimit tells whether a policy needs no other key beside its port.
func isLimit(k *ctpolicy.Key) bool {
	p := &ctpolicy.Policy{Name: "x", Ports: []ctpolicy.PortRange{{First: 1, Last: 1}}}
	return k.Set(p, k.Example) == nil && p.Validate() == nil
}

// plain is a usage text without the marks around its placeholder.
func plain(usage string) string { return strings.ReplaceAll(usage, "`", "") }
