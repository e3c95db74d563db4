package conntrack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// appendRequest begins a request of any type, in the family of the tuple.
func appendRequest(b []byte, typ, flags uint16, t Tuple) []byte {
	family := byte(unix.NFPROTO_IPV4)
	if t.Src.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	b = nl.AppendHeader(b, typ, flags)
	return append(b, family, unix.NFNETLINK_V0, 0, 0)
}

// about begins a request about the entry that has the tuple in the zone. That is one entry at most, whatever form its
// zone has: of a zone, the kernel compares the number in the direction of the tuple (nf_ct_key_equal).
func about(typ uint16, t Tuple, zone uint16) []byte {
	b := appendRequest(nil, typ, 0, t)
	b = appendTuple(b, ctaTupleOrig, t, 0)
	return appendZone(b, ctaZone, zone)
}

// creation is the request for a new entry. Of the status, only StatusFixedTimeout and the NAT bits count.
func creation(e *Entry) []byte {
	b := appendRequest(nil, newEntry, unix.NLM_F_CREATE|unix.NLM_F_EXCL, e.Orig)
	b = appendIdentity(b, e)
	b = nl.AppendUint32(b, ctaTimeout, e.Timeout)
	b = nl.AppendUint32(b, ctaStatus, statusOpen|e.Status&StatusFixedTimeout)
	b = appendTCP(b, e)
	b = nl.AppendUint32(b, ctaMark, e.Mark)
	if e.Label != (Label{}) {
		b = appendBytes(b, ctaLabels, e.Label[:])
	}
	if translated(e) {
		b = appendNAT(b, ctaNATDst, e.Reply.Src)
		b = appendNAT(b, ctaNATSrc, e.Reply.Dst)
	}
	return b
}

// appendIdentity appends tuples and zone of a new entry. A zone of one direction is inside that direction's tuple
// (ctnetlink_parse_tuple_zone). The reply tuple is without NAT: the kernel puts that into it.
func appendIdentity(b []byte, e *Entry) []byte {
	if e.Zone == e.ReplyZone {
		b = appendTuple(b, ctaTupleOrig, e.Orig, 0)
		b = appendTuple(b, ctaTupleReply, e.Orig.reverse(), 0)
		return appendZone(b, ctaZone, e.Zone)
	}
	b = appendTuple(b, ctaTupleOrig, e.Orig, e.Zone)
	return appendTuple(b, ctaTupleReply, e.Orig.reverse(), e.ReplyZone)
}

// translated tells whether the NAT of an entry was set up, also when it changes nothing: the kernel then has the DONE
// bits, and knows the flow's source as taken.
func translated(e *Entry) bool { return e.Status&statusTranslated != 0 || e.Reply != e.Orig.reverse() }

func appendTuple(b []byte, typ uint16, t Tuple, zone uint16) []byte {
	return nl.AppendNested(b, typ, func(b []byte) []byte {
		b = nl.AppendNested(b, ctaTupleIP, func(b []byte) []byte {
			b = appendAddr(b, ctaIPv4Src, ctaIPv6Src, t.Src.Addr())
			return appendAddr(b, ctaIPv4Dst, ctaIPv6Dst, t.Dst.Addr())
		})
		b = nl.AppendNested(b, ctaTupleProto, func(b []byte) []byte {
			b = appendBytes(b, ctaProtoNum, []byte{unix.IPPROTO_TCP})
			b = appendUint16(b, ctaProtoSrcPort, t.Src.Port())
			return appendUint16(b, ctaProtoDstPort, t.Dst.Port())
		})
		return appendZone(b, ctaTupleZone, zone)
	})
}

// appendNAT appends a range of one address and one port, to which NAT is to translate (nfnetlink_parse_nat).
func appendNAT(b []byte, typ uint16, to netip.AddrPort) []byte {
	return nl.AppendNested(b, typ, func(b []byte) []byte {
		b = appendAddr(b, ctaNATv4Min, ctaNATv6Min, to.Addr())
		b = appendAddr(b, ctaNATv4Max, ctaNATv6Max, to.Addr())
		return nl.AppendNested(b, ctaNATProto, func(b []byte) []byte {
			b = appendUint16(b, ctaNATPortMin, to.Port())
			return appendUint16(b, ctaNATPortMax, to.Port())
		})
	})
}

// appendTCP appends state, flags and scales of e. What is zero is left out: then the kernel leaves it as it is.
// The flags are set in addition to those that are there, because the mask is the same (struct nf_ct_tcp_flags).
func appendTCP(b []byte, e *Entry) []byte {
	return nl.AppendNested(b, ctaProtoInfo, func(b []byte) []byte {
		return nl.AppendNested(b, ctaProtoInfoTCP, func(b []byte) []byte {
			if e.State != StateNone {
				b = appendBytes(b, ctaTCPState, []byte{e.State})
			}
			b = appendBytes(b, ctaTCPFlagsOrig, []byte{e.OrigFlags, e.OrigFlags})
			b = appendBytes(b, ctaTCPFlagsReply, []byte{e.ReplyFlags, e.ReplyFlags})
			if e.OrigFlags&e.ReplyFlags&tcpWindowScale != 0 { // the kernel takes both or none (nlattr_to_tcp)
				b = appendBytes(b, ctaTCPScaleOrig, []byte{e.OrigScale})
				b = appendBytes(b, ctaTCPScaleReply, []byte{e.ReplyScale})
			}
			return b
		})
	})
}

func appendAddr(b []byte, v4, v6 uint16, a netip.Addr) []byte {
	if a.Is4() {
		return appendBytes(b, v4, a.AsSlice())
	}
	return appendBytes(b, v6, a.AsSlice())
}

func appendZone(b []byte, typ, zone uint16) []byte {
	if zone == 0 {
		return b
	}
	return appendUint16(b, typ, zone)
}

func appendUint16(b []byte, typ, value uint16) []byte {
	return appendBytes(b, typ, binary.BigEndian.AppendUint16(nil, value))
}

// appendBytes appends a short attribute, for which AppendAttr has no error.
func appendBytes(b []byte, typ uint16, value []byte) []byte {
	b, _ = nl.AppendAttr(b, typ, value)
	return b
}
