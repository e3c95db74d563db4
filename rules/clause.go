package rules

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

type exprs = []expr.Any

// A clause is a part of a rule.
type clause struct {
	text  string // as `nft list` prints it: without what follows from the other words of the rule
	exprs exprs
}

// join makes one clause out of several.
func join(clauses ...clause) clause {
	var all clause
	var texts []string
	for _, c := range clauses {
		all.exprs = append(all.exprs, c.exprs...)
		if c.text != "" {
			texts = append(texts, c.text)
		}
	}
	all.text = strings.Join(texts, " ")
	return all
}

// say gives expressions their text.
func say(text string, words ...expr.Any) clause { return clause{text, words} }

func equal(value []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: value} }

func notEqual(value []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: value} }

func mask(bits []byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(len(bits)),
		Mask: bits, Xor: make([]byte, len(bits)),
	}
}

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// comment is a rule's comment as nft writes and reads it.
func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

// nftTime is a duration as nft prints it: 1h20ms.
func nftTime(d time.Duration) string {
	var b strings.Builder
	for _, unit := range []struct {
		name   string
		length time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}, {"ms", time.Millisecond}} {
		if n := d / unit.length; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, unit.name)
			d -= n * unit.length
		}
	}
	return b.String()
}
