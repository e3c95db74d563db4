package rules

import (
	"encoding/binary"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// MarkUsers names the chains of other tables that a packet with our mark collides with, as "ip mangle PREROUTING". A
// rule collides when
//   - its matches on the mark tell a packet with our mark from one without a mark, whichever of the two they let
//     through: "mark & 0xff == 0x66", but not "mark != 1";
//   - or it gives packets our very mark, which would make them untracked.
//
// All other matches of a rule are taken to hold, and a set is what it holds now. Not seen are the rules of legacy
// iptables and of ebtables, a mark that comes from the connection, the socket or a hash, one that several rules build
// together, and what sets marks outside of nftables: tc, BPF, SO_MARK.
func MarkUsers(mark uint32) ([]string, error) {
	return foreignChains(func(conn *nftables.Conn, r *nftables.Rule) (bool, error) {
		return collides(r.Exprs, mark, func(set string) ([]nftables.SetElement, error) {
			return conn.GetSetElements(&nftables.Set{Table: r.Table, Name: set})
		})
	})
}

// Every rule is run for two packets at once.
const (
	ours     = iota // a packet with our mark
	unmarked        // one without a mark
)

// pair is the content of a register, for each of the two packets.
type pair [2]uint32

// A markRun is what is known of the two packets on their way through one rule.
type markRun struct {
	mark     uint32
	elements func(set string) ([]nftables.SetElement, error)
	held     map[uint32]pair // by place of the register; what is not here is unknown
	through  [2]bool         // so far the rule may hold
	collides bool
}

// collides runs the rule. elements reads a set of its table.
func collides(words exprs, mark uint32, elements func(set string) ([]nftables.SetElement, error)) (bool, error) {
	run := &markRun{mark: mark, elements: elements, held: map[uint32]pair{}, through: [2]bool{true, true}}
	for _, word := range words {
		if err := run.word(word); err != nil {
			return false, err
		}
	}
	return run.collides || run.through[ours] != run.through[unmarked], nil
}

func (r *markRun) word(word expr.Any) error {
	switch w := word.(type) {
	case *expr.Meta:
		r.meta(w)
	case *expr.Immediate:
		r.immediate(w)
	case *expr.Bitwise:
		r.bitwise(w)
	case *expr.Cmp:
		r.cmp(w)
	case *expr.Range:
		r.between(w)
	case *expr.Lookup:
		return r.lookup(w)
	case *expr.Match:
		r.match(w)
	case *expr.Target:
		r.target(w)
	default:
		r.forget(loaded(word))
	}
	return nil
}

func (r *markRun) meta(w *expr.Meta) {
	switch {
	case !w.SourceRegister && w.Key == expr.MetaKeyMARK:
		r.held[place(w.Register)] = pair{ours: r.mark}
	case !w.SourceRegister:
		r.forget(w.Register)
	case w.Key == expr.MetaKeyMARK:
		if held, ok := r.held[place(w.Register)]; ok {
			r.give(held[unmarked])
		}
	}
}

// give sets the mark of a packet that had another one.
func (r *markRun) give(mark uint32) { r.collides = r.collides || mark == r.mark }

func (r *markRun) immediate(w *expr.Immediate) {
	r.forget(w.Register)
	if len(w.Data) == 4 {
		v := binary.NativeEndian.Uint32(w.Data)
		r.held[place(w.Register)] = pair{v, v}
	}
}

func (r *markRun) bitwise(w *expr.Bitwise) {
	held, ok := r.held[place(w.SourceRegister)]
	r.forget(w.DestRegister)
	if !ok || len(w.Mask) != 4 || len(w.Xor) != 4 { // a shift has neither
		return
	}
	for i := range held {
		held[i] = held[i]&binary.NativeEndian.Uint32(w.Mask) ^ binary.NativeEndian.Uint32(w.Xor)
	}
	r.held[place(w.DestRegister)] = held
}

func (r *markRun) cmp(w *expr.Cmp) {
	if len(w.Data) != 4 {
		r.forget(w.Register)
		return
	}
	// Only big-endian numbers have an order: nft puts a byteorder before, which the library leaves out.
	native, ordered := binary.NativeEndian.Uint32(w.Data), binary.BigEndian.Uint32(w.Data)
	r.require(w.Register, func(v uint32) bool {
		switch w.Op {
		case expr.CmpOpEq:
			return v == native
		case expr.CmpOpNeq:
			return v != native
		case expr.CmpOpLt:
			return v < ordered
		case expr.CmpOpLte:
			return v <= ordered
		case expr.CmpOpGt:
			return v > ordered
		}
		return v >= ordered
	})
	// A match is over with this, unless it is one of several that exclude, or the lower end of a range. What is compared
	// next may have been loaded by a word that the library leaves out.
	if w.Op == expr.CmpOpEq || w.Op == expr.CmpOpLt || w.Op == expr.CmpOpLte {
		r.forget(w.Register)
	}
}

func (r *markRun) between(w *expr.Range) {
	if len(w.FromData) == 4 && len(w.ToData) == 4 {
		from, to := binary.BigEndian.Uint32(w.FromData), binary.BigEndian.Uint32(w.ToData)
		r.require(w.Register, func(v uint32) bool { return (from <= v && v <= to) == (w.Op == expr.CmpOpEq) })
	}
	r.forget(w.Register)
}

// require stops those of the two packets for which the register's content does not hold.
func (r *markRun) require(register uint32, holds func(uint32) bool) {
	if held, ok := r.held[place(register)]; ok {
		for i := range held {
			r.through[i] = r.through[i] && holds(held[i])
		}
	}
}
