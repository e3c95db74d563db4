package rules

import (
	"maps"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// forget is for a register that something unknown of up to 16 bytes was loaded into.
func (r *markRun) forget(register uint32) {
	maps.DeleteFunc(r.held, func(p uint32, _ pair) bool { return p >= place(register) && p < place(register)+4 })
}

// place counts registers in words of 4 bytes. Each of NFT_REG_1 to NFT_REG_4 has four, which begin with NFT_REG32_00.
func place(register uint32) uint32 {
	if register >= unix.NFT_REG32_00 {
		return register - unix.NFT_REG32_00 + 4
	}
	return 4 * register
}

// loaded is the register that a word without a meaning for marks writes to, or the one of verdicts.
func loaded(word expr.Any) uint32 {
	switch w := word.(type) {
	case *expr.Payload:
		return w.DestRegister
	case *expr.Ct:
		return w.Register // or reads from it, and then it has served its purpose
	case *expr.Exthdr:
		return w.DestRegister
	case *expr.Fib:
		return w.Register
	case *expr.Hash:
		return w.DestRegister
	case *expr.Numgen:
		return w.Register
	}
	return unix.NFT_REG_VERDICT
}
