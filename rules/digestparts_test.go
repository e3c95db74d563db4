package rules

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

func exprOf(name string, data ...byte) []byte {
	b := appendAttr(nil, unix.NFTA_EXPR_NAME, append([]byte(name), 0))
	return appendAttr(b, unix.NFTA_EXPR_DATA|unix.NLA_F_NESTED, data)
}

func numbers(values ...uint32) (b []byte) {
	for i, v := range values {
		b = nl.AppendUint32(b, uint16(i+1), v)
	}
	return b
}

func TestLastingExpr(t *testing.T) {
	padding := appendAttr(nil, 9, nil)
	for _, c := range []struct {
		name string
		a, b []byte
		same bool
	}{
		{"counter", exprOf("counter", numbers(1, 2)...), exprOf("counter", numbers(3, 4)...), true},
		{"last", exprOf("last", numbers(0, 2)...), exprOf("last", numbers(1, 9)...), true},
		{"consumed", exprOf("quota", numbers(1, 0, 0, 4)...), exprOf("quota", numbers(1, 2, 0, 5)...), true},
		{"quota", exprOf("quota", numbers(1, 0, 0, 4)...), exprOf("quota", numbers(2, 0, 0, 4)...), false},
		{"limit", exprOf("limit", numbers(1, 2)...), exprOf("limit", numbers(1, 3)...), false},
		{"padding", exprOf("limit", numbers(1, 2)...), exprOf("limit", append(padding, numbers(1, 2)...)...), true},
		{"names", exprOf("counter"), exprOf("last"), false},
	} {
		a, err := lastingExpr(c.a)
		b, err2 := lastingExpr(c.b)
		if err != nil || err2 != nil || bytes.Equal(a, b) != c.same {
			t.Errorf("%s: %q and %q, %v, %v", c.name, a, b, err, err2)
		}
	}
}

// FuzzDigest gives any message to all that read one. What one of them takes has the same digest again.
func FuzzDigest(f *testing.F) {
	message := func(attrs ...[]byte) []byte {
		b := append([]byte{unix.NFPROTO_INET, 0, 0, 0}, appendAttr(nil, attrTable, []byte(TableName+"\x00"))...)
		return append(b, bytes.Join(attrs, nil)...)
	}
	element := appendAttr(nil, unix.NFTA_LIST_ELEM, exprOf("counter", numbers(1, 2)...))
	f.Add(message(numbers(1, 2, 3)[8:]))
	f.Add(message(appendAttr(nil, unix.NFTA_RULE_CHAIN, []byte("input\x00")), appendAttr(nil, unix.NFTA_RULE_EXPRESSIONS, element)))
	f.Add(message(appendAttr(nil, unix.NFTA_SET_ELEM_LIST_ELEMENTS, element)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		read := func() string {
			d := digest{ruleCount: map[string]uint32{}}
			for _, part := range []func(attributes) error{d.table, d.chain, d.rule, d.set, d.object, d.elements} {
				_ = d.handle(part)(0, payload)
			}
			return d.String()
		}
		if first, again := read(), read(); first != again {
			t.Fatalf("%s, then %s", first, again)
		}
	})
}
