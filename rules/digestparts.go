package rules

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// What golang.org/x/sys has no names for, from include/uapi/linux/netfilter/nf_tables.h.
const (
	attrTable          = 1 // NFTA_*_TABLE and NFTA_TABLE_NAME
	attrChainFlags     = 10
	attrSetExpr        = 17
	attrSetExpressions = 18
	attrElementKeyEnd  = 10
)

// digest adds up the hashes of all parts, so that their order doesn't matter.
type digest struct {
	sum       uint64
	ruleCount map[string]uint32 // by chain
	lasting   []string          // the sets whose elements belong to the digest
}

// String is the digest so far.
func (d *digest) String() string { return fmt.Sprintf("%016x", d.sum) }

// add hashes a part with the length of each of its values.
func (d *digest) add(kind string, values ...[]byte) {
	b := append([]byte(kind), 0)
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	h := sha256.Sum256(b)
	d.sum += binary.BigEndian.Uint64(h[:])
}

// holdsNotes tells which chains hold nothing but notes of our own.
func holdsNotes(chain string) bool { return chain == chainAbout || chain == "state" }

// table adds the flags; dormant is one of them.
func (d *digest) table(a attributes) error {
	d.add("table", a[unix.NFTA_TABLE_FLAGS])
	return nil
}

func (d *digest) chain(a attributes) error {
	if !holdsNotes(a.text(unix.NFTA_CHAIN_NAME)) {
		d.add("chain", a[unix.NFTA_CHAIN_NAME], a[unix.NFTA_CHAIN_TYPE], a[unix.NFTA_CHAIN_HOOK], a[unix.NFTA_CHAIN_POLICY],
			a[attrChainFlags])
	}
	return nil
}

// rule adds a rule with its place in its chain: a dump has the rules of a chain in their order.
func (d *digest) rule(a attributes) error {
	chain := a.text(unix.NFTA_RULE_CHAIN)
	if holdsNotes(chain) {
		return nil
	}
	exprs, err := lastingExprs(a[unix.NFTA_RULE_EXPRESSIONS])
	if err != nil {
		return err
	}
	place := binary.BigEndian.AppendUint32(nil, d.ruleCount[chain])
	d.ruleCount[chain]++
	d.add("rule", []byte(chain), place, exprs, a[unix.NFTA_RULE_USERDATA])
	return nil
}

// set adds a set or map without its elements. Rules add elements to those that are dynamic, and the kernel takes away
// those that have a timeout.
func (d *digest) set(a attributes) error {
	exprs, err := lastingExprs(a[attrSetExpressions])
	if err != nil {
		return err
	}
	single, err := lastingExpr(a[attrSetExpr])
	if err != nil {
		return err
	}
	d.add("set", a[unix.NFTA_SET_NAME], a[unix.NFTA_SET_FLAGS], a[unix.NFTA_SET_KEY_TYPE], a[unix.NFTA_SET_KEY_LEN],
		a[unix.NFTA_SET_DATA_TYPE], a[unix.NFTA_SET_DATA_LEN], a[unix.NFTA_SET_OBJ_TYPE], a[unix.NFTA_SET_DESC],
		a[unix.NFTA_SET_TIMEOUT], exprs, single)
	var flags uint32 // the kernel leaves them out when there are none
	if len(a[unix.NFTA_SET_FLAGS]) > 0 {
		if flags, err = a.number(unix.NFTA_SET_FLAGS); err != nil {
			return err
		}
	}
	if flags&(unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL) == 0 {
		d.lasting = append(d.lasting, a.text(unix.NFTA_SET_NAME))
	}
	return nil
}

// elements adds those of one message about a set.
func (d *digest) elements(a attributes) error {
	list := nl.ParseAttrs(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS])
	for list.Next() {
		e, err := parseAttributes(list.Value())
		if err != nil {
			return err
		}
		d.add("element", a[unix.NFTA_SET_ELEM_LIST_SET], e[unix.NFTA_SET_ELEM_KEY], e[attrElementKeyEnd], e[unix.NFTA_SET_ELEM_DATA],
			e[unix.NFTA_SET_ELEM_FLAGS], e[unix.NFTA_SET_ELEM_OBJREF])
	}
	return list.Err()
}

// object adds a named object. What a counter and a quota hold is what traffic has made of it.
func (d *digest) object(a attributes) error {
	typ, err := a.number(unix.NFTA_OBJ_TYPE)
	if err != nil {
		return err
	}
	data := a[unix.NFTA_OBJ_DATA]
	if typ == unix.NFT_OBJECT_COUNTER || typ == unix.NFT_OBJECT_QUOTA {
		data = nil
	}
	d.add("object", a[unix.NFTA_OBJ_NAME], a[unix.NFTA_OBJ_TYPE], data)
	return nil
}

// lastingExprs is a list of expressions without what traffic changes.
func lastingExprs(b []byte) (lasting []byte, err error) {
	list := nl.ParseAttrs(b)
	for list.Next() {
		e, err := lastingExpr(list.Value())
		if err != nil {
			return nil, err
		}
		lasting = append(binary.BigEndian.AppendUint32(lasting, uint32(len(e))), e...)
	}
	return lasting, list.Err()
}

// lastingExpr is one expression without what traffic changes: the values of counter and last, and the consumed part of
// a quota with the flag that follows from it (nft_counter.c, nft_last.c and nft_quota.c of net/netfilter). The others
// send no state: limit and connlimit send what they allow, dynset sends the expressions that new elements get.
func lastingExpr(b []byte) ([]byte, error) {
	e, err := parseAttributes(b)
	if err != nil {
		return nil, err
	}
	lasting := append([]byte(e.text(unix.NFTA_EXPR_NAME)), 0)
	data := nl.ParseAttrs(e[unix.NFTA_EXPR_DATA])
	for data.Next() {
		if len(data.Value()) == 0 {
			continue // padding before a number of 8 bytes, which depends on where the message lies
		}
		switch e.text(unix.NFTA_EXPR_NAME) {
		case "counter", "last":
			continue
		case "quota":
			if data.Type() != unix.NFTA_QUOTA_BYTES {
				continue
			}
		}
		lasting = appendAttr(lasting, data.Type(), data.Value())
	}
	return lasting, data.Err()
}
