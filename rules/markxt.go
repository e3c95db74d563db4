package rules

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// match is iptables' "-m mark" (struct xt_mark_mtinfo1: mark, mask, invert), where iptables-nft keeps it as it is.
func (r *markRun) match(w *expr.Match) {
	info, ok := unknown(w.Info, 9)
	if !ok || w.Name != "mark" || w.Rev != 1 {
		return
	}
	mark, mask, invert := binary.NativeEndian.Uint32(info), binary.NativeEndian.Uint32(info[4:]), info[8] != 0
	for i, v := range (pair{ours: r.mark}) {
		r.through[i] = r.through[i] && (v&mask == mark) != invert
	}
}

// target is iptables' "-j MARK" (struct xt_mark_tginfo2: mark, mask). The new mark is old &^ mask ^ mark.
func (r *markRun) target(w *expr.Target) {
	if info, ok := unknown(w.Info, 8); ok && w.Name == "MARK" && w.Rev == 2 {
		r.give(binary.NativeEndian.Uint32(info)) // of a packet without a mark
	}
}

// unknown is the content of a structure that the library has no type for.
func unknown(info xt.InfoAny, length int) ([]byte, bool) {
	u, ok := info.(*xt.Unknown)
	if !ok || len(*u) < length {
		return nil, false
	}
	return *u, true
}
