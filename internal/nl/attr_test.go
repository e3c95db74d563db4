package nl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

func TestAttrs(t *testing.T) {
	b, err := AppendAttr(nil, 1|0x8000, []byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	b = AppendUint32(b, 2, 0x01020304)
	a := ParseAttrs(b)
	if !a.Next() || a.Type() != 1 || string(a.Value()) != "abc" {
		t.Fatalf("first: type %d, %q", a.Type(), a.Value())
	}
	if !a.Next() || a.Type() != 2 || a.Uint32() != 0x01020304 || a.Uint16() != 0x0102 || a.Uint8() != 1 {
		t.Fatalf("second: type %d, %q", a.Type(), a.Value())
	}
	if a.Next() || a.Err() != nil {
		t.Fatalf("end: type %d, %v", a.Type(), a.Err())
	}
	if a.Uint64() != 0 || !errors.Is(a.Err(), ErrMalformed) {
		t.Fatalf("8 bytes of 4: %v", a.Err())
	}
}

func TestAttrsAreStrict(t *testing.T) {
	attr := func(length uint16, tail ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, length)
		b = binary.NativeEndian.AppendUint16(b, 1)
		return append(b, tail...)
	}
	for _, c := range []struct {
		name  string
		b     []byte
		count int
		want  error
	}{
		{"none", nil, 0, nil},
		{"empty value", attr(4), 1, nil},
		{"last one without padding", attr(5, 1), 1, nil},
		{"shorter than its header", attr(3), 0, ErrMalformed},
		{"no length", attr(0), 0, ErrMalformed},
		{"beyond the end", attr(6, 1), 0, ErrMalformed},
		{"rest shorter than a header", attr(4, 1, 2, 3), 1, ErrMalformed},
	} {
		a, n := ParseAttrs(c.b), 0
		for a.Next() {
			n++
		}
		if n != c.count || !errors.Is(a.Err(), c.want) {
			t.Errorf("%s: %d attributes, %v; want %d, %v", c.name, n, a.Err(), c.count, c.want)
		}
	}
}

func TestAppendAttrLimit(t *testing.T) {
	if _, err := AppendAttr(nil, 1, make([]byte, 65531)); err != nil {
		t.Error(err)
	}
	if _, err := AppendAttr(nil, 1, make([]byte, 65532)); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

// Whatever can be read is the same when it is written and read again.
func FuzzAttrs(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendUint32(nil, 2, 7))
	f.Add([]byte{5, 0, 1, 0, 9})
	f.Add([]byte{3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		a := ParseAttrs(b)
		for a.Next() {
			var err error
			if again, err = AppendAttr(again, a.Type(), a.Value()); err != nil {
				t.Fatal(err)
			}
		}
		first, second := ParseAttrs(b), ParseAttrs(again)
		for second.Next() {
			if !first.Next() || first.Type() != second.Type() || !bytes.Equal(first.Value(), second.Value()) {
				t.Fatalf("type %d, %q became type %d, %q", first.Type(), first.Value(), second.Type(), second.Value())
			}
		}
		if second.Err() != nil {
			t.Fatal(second.Err())
		}
	})
}

func TestAppendNested(t *testing.T) {
	b := AppendNested([]byte("head"), 7, func(b []byte) []byte {
		b = AppendUint32(b, 1, 2)
		return AppendNested(b, 3, func(b []byte) []byte { return b })
	})
	outer := ParseAttrs(AppendUint32(b, 9, 9)[4:])
	if !outer.Next() || outer.Type() != 7 || len(outer.Value()) != 12 {
		t.Fatalf("outer: type %d, %q", outer.Type(), outer.Value())
	}
	inner := ParseAttrs(outer.Value())
	if !inner.Next() || inner.Type() != 1 || inner.Uint32() != 2 {
		t.Errorf("first: type %d, %q", inner.Type(), inner.Value())
	}
	if !inner.Next() || inner.Type() != 3 || len(inner.Value()) != 0 || inner.Next() || inner.Err() != nil {
		t.Errorf("second: type %d, %q, %v", inner.Type(), inner.Value(), inner.Err())
	}
	if !outer.Next() || outer.Type() != 9 || outer.Next() || outer.Err() != nil {
		t.Errorf("after it: type %d, %v", outer.Type(), outer.Err())
	}
}
