package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

const testMark = 0x63757266

// info is a structure of xtables: words, then padding.
func info(words ...uint32) xt.InfoAny {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	u := xt.Unknown(append(b, make([]byte, 4)...))
	return &u
}

func big32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func TestCollides(t *testing.T) {
	load := expr.Any(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg})
	store := expr.Any(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
	cmp := func(op expr.CmpOp, data []byte) expr.Any { return &expr.Cmp{Op: op, Register: reg, Data: data} }
	xtMark := func(rev uint32, words ...uint32) expr.Any {
		return &expr.Match{Name: "mark", Rev: rev, Info: info(words...)}
	}
	target := func(name string, words ...uint32) expr.Any {
		return &expr.Target{Name: name, Rev: 2, Info: info(words...)}
	}
	payload := expr.Any(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4})

	for name, tc := range map[string]struct {
		words exprs
		want  bool
	}{
		"nothing":                 {nil, false},
		"equal":                   {exprs{load, equal(native32(testMark))}, true},
		"another":                 {exprs{load, equal(native32(1))}, false},
		"not another":             {exprs{load, notEqual(native32(1))}, false},
		"not ours":                {exprs{load, notEqual(native32(testMark))}, true},
		"any":                     {exprs{load, notEqual(native32(0))}, true},
		"none":                    {exprs{load, equal(native32(0))}, true},
		"masked":                  {exprs{load, mask(native32(0xff)), equal(native32(0x66))}, true},
		"masked, another":         {exprs{load, mask(native32(0xff)), equal(native32(0x67))}, false},
		"bit that we lack":        {exprs{load, mask(native32(0x8000)), notEqual(native32(0))}, false},
		"bit that we have":        {exprs{load, mask(native32(0x4000)), notEqual(native32(0))}, true},
		"two masks, one fails":    {exprs{load, mask(native32(0xf)), equal(native32(6)), load, mask(native32(0xf0)), equal(native32(0x50))}, false},
		"six, but not ours":       {exprs{load, mask(native32(0xf)), equal(native32(6)), load, notEqual(native32(testMark))}, false},
		"six, but not in a range": {exprs{load, mask(native32(0xf)), equal(native32(6)), load, &expr.Range{Op: expr.CmpOpNeq, Register: reg, FromData: big32(1), ToData: big32(testMark)}}, false},
		"ct mark after a mark":    {exprs{load, notEqual(native32(1)), loadCt(expr.CtKeyMARK), equal(native32(testMark))}, false},
		"xt, six, but not ours":   {exprs{xtMark(1, 6, 0xf, 0), xtMark(1, testMark, 0xffffffff, 1)}, false},
		"greater":                 {exprs{load, cmp(expr.CmpOpGt, big32(testMark-1))}, true},
		"not greater":             {exprs{load, cmp(expr.CmpOpGt, big32(testMark))}, false},
		"at least":                {exprs{load, cmp(expr.CmpOpGte, big32(testMark))}, true},
		"less":                    {exprs{load, cmp(expr.CmpOpLt, big32(testMark))}, true},
		"less than more":          {exprs{load, cmp(expr.CmpOpLt, big32(testMark+1))}, false},
		"at most":                 {exprs{load, cmp(expr.CmpOpLte, big32(testMark-1))}, true},
		"range":                   {exprs{load, cmp(expr.CmpOpGte, big32(1)), cmp(expr.CmpOpLte, big32(testMark))}, true},
		"range below":             {exprs{load, cmp(expr.CmpOpGte, big32(1)), cmp(expr.CmpOpLte, big32(testMark-1))}, false},
		"not in a range":          {exprs{load, &expr.Range{Op: expr.CmpOpNeq, Register: reg, FromData: big32(1), ToData: big32(testMark)}}, true},
		"not in a range below":    {exprs{load, &expr.Range{Op: expr.CmpOpNeq, Register: reg, FromData: big32(1), ToData: big32(9)}}, false},
		"ct mark":                 {exprs{loadCt(expr.CtKeyMARK), equal(native32(testMark))}, false},
		"address after a mark":    {exprs{load, cmp(expr.CmpOpNeq, native32(1)), payload, equal(native32(testMark))}, false},
		"left out after a mark":   {exprs{load, equal(native32(0)), equal(native32(testMark))}, true},
		"left out, both stopped":  {exprs{load, equal(native32(1)), equal(native32(testMark))}, false},
		"set ours":                {exprs{&expr.Immediate{Register: reg, Data: native32(testMark)}, store}, true},
		"set another":             {exprs{&expr.Immediate{Register: reg, Data: native32(1)}, store}, false},
		"set ct mark":             {exprs{&expr.Immediate{Register: reg, Data: native32(testMark)}, &expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true}}, false},
		"or ours":                 {exprs{load, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native32(^uint32(testMark)), Xor: native32(testMark)}, store}, true},
		"and":                     {exprs{load, mask(native32(0xff)), store}, false},
		"shift":                   {exprs{load, &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4}, store}, false},
		"set the same":            {exprs{load, store}, false},
		"restore":                 {exprs{loadCt(expr.CtKeyMARK), store}, false},
		"xt":                      {exprs{xtMark(1, testMark, 0xffffffff, 0)}, true},
		"xt, another":             {exprs{xtMark(1, 1, 0xffffffff, 0)}, false},
		"xt, masked":              {exprs{xtMark(1, 0x66, 0xff, 0)}, true},
		"xt, not another":         {exprs{xtMark(1, 1, 0xffffffff, 1)}, false},
		"xt, bit that we have":    {exprs{xtMark(1, 0x4000, 0x4000, 1)}, true},
		"xt, cut":                 {exprs{&expr.Match{Name: "mark", Rev: 1, Info: &xt.Unknown{1, 2, 3}}}, false},
		"xt, unknown revision":    {exprs{xtMark(7, testMark, 0xffffffff, 0)}, false},
		"xt, another match":       {exprs{&expr.Match{Name: "connmark", Rev: 1, Info: info(testMark, 0xffffffff, 0)}}, false},
		"xt, known to library":    {exprs{&expr.Match{Name: "comment", Info: new(xt.Comment)}}, false},
		"xt, set ours":            {exprs{target("MARK", testMark, 0xffffffff)}, true},
		"xt, or ours":             {exprs{target("MARK", testMark, testMark)}, true},
		"xt, set another":         {exprs{target("MARK", 1, 0xffffffff)}, false},
		"xt, another target":      {exprs{target("CONNMARK", testMark, 0xffffffff)}, false},
		"set ours for a mark":     {exprs{load, equal(native32(1)), &expr.Immediate{Register: reg, Data: native32(testMark)}, store}, true},
		"counter":                 {exprs{load, &expr.Counter{}, equal(native32(testMark))}, true},
		"mark in another word":    {exprs{&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG32_01}, payload, &expr.Cmp{Register: unix.NFT_REG32_01, Data: native32(testMark)}}, false},
		"kept in another word":    {exprs{payload, &expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG32_01}, &expr.Cmp{Register: unix.NFT_REG32_01, Data: native32(testMark)}}, true},
		"other metadata":          {exprs{load, &expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg}, equal(native32(testMark))}, false},
		"write to the packet":     {exprs{load, &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg}, equal(native32(testMark))}, true},
		"four registers of a row": {exprs{&expr.Meta{Key: expr.MetaKeyMARK, Register: unix.NFT_REG_2}, payload, &expr.Cmp{Register: unix.NFT_REG32_04, Data: native32(testMark)}}, true},
	} {
		if got, err := collides(tc.words, testMark, nil); got != tc.want || err != nil {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tc.want)
		}
	}
}

func TestWholeIntervals(t *testing.T) {
	begin := func(mark uint32) nftables.SetElement { return nftables.SetElement{Key: big32(mark)} }
	end := func(mark uint32) nftables.SetElement { return nftables.SetElement{Key: big32(mark), IntervalEnd: true} }
	elements := []nftables.SetElement{begin(20), end(20), begin(10), end(5), begin(1), end(0), {Val: []byte("*")}}
	for range 2 {
		var got []string
		for _, e := range whole(elements) {
			got = append(got, fmt.Sprintf("%x-%x%s", e.Key, e.KeyEnd, e.Val))
		}
		if want := []string{"-*", "00000001-00000004", "0000000a-00000013", "00000014-ffffffff"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		slices.Reverse(elements)
	}
}

// What follows a look-up is about something else, which the library may have left out.
func TestCollidesForgetsAfterALookup(t *testing.T) {
	words := exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, &expr.Lookup{SourceRegister: reg, SetName: "s"},
		equal(native32(testMark)),
	}
	both := []nftables.SetElement{{Key: native32(0)}, {Key: native32(testMark)}, {Key: []byte{1}}}
	if got, err := collides(words, testMark, func(string) ([]nftables.SetElement, error) { return both, nil }); got || err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// A set that can't be read is an error, but only for a rule that asks it about marks.
func TestCollidesReadsSets(t *testing.T) {
	look := exprs{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, &expr.Lookup{SourceRegister: reg, SetName: "s"},
	}
	for _, tc := range []struct {
		words exprs
		want  error
	}{{look, unix.EPERM}, {look[1:], nil}} {
		_, err := collides(tc.words, testMark, func(string) ([]nftables.SetElement, error) { return nil, unix.EPERM })
		if !errors.Is(err, tc.want) {
			t.Errorf("%d words: %v, want %v", len(tc.words), err, tc.want)
		}
	}
}

func TestFamilyName(t *testing.T) {
	var names []string
	for _, f := range []nftables.TableFamily{
		nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyARP,
		nftables.TableFamilyNetdev, nftables.TableFamilyBridge, 99,
	} {
		names = append(names, familyName(f))
	}
	if want := []string{"inet", "ip", "ip6", "arp", "netdev", "bridge", "family 99"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}
