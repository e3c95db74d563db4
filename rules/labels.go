package rules

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"curfew/ctpolicy"
)

// LabelUsers names the chains of other tables whose rules use one of our ct label bits, as "inet filter input".
func LabelUsers() ([]string, error) {
	return foreignChains(func(_ *nftables.Conn, r *nftables.Rule) (bool, error) {
		return usesOurLabels(r.Exprs), nil
	})
}

// usesOurLabels tells that a rule has to do with labels, and holds a constant with one of our bits.
func usesOurLabels(words exprs) bool {
	labels, bits := false, false
	for _, word := range words {
		var data []byte
		switch w := word.(type) {
		case *expr.Ct:
			labels = labels || w.Key == expr.CtKeyLABELS
		case *expr.Immediate:
			data = w.Data
		case *expr.Bitwise:
			data = w.Mask
		case *expr.Cmp:
			data = w.Data
		}
		bits = bits || hasOurBits(data)
	}
	return labels && bits
}

func hasOurBits(data []byte) bool {
	for bit := ctpolicy.FirstLabel; bit <= ctpolicy.LabelRegistered; bit++ {
		for i, b := range labelBit(bit) {
			if len(data) == len(labelBit(bit)) && data[i]&b != 0 {
				return true
			}
		}
	}
	return false
}
