package conntrack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

// Message types of ctnetlink.
const (
	newEntry    = unix.NFNL_SUBSYS_CTNETLINK << 8 // IPCTNL_MSG_CT_NEW
	getEntry    = newEntry | 1                    // IPCTNL_MSG_CT_GET
	deleteEntry = newEntry | 2                    // IPCTNL_MSG_CT_DELETE
)

// Attributes, from include/uapi/linux/netfilter/nfnetlink_conntrack.h. Each group has its own numbers.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaNATSrc     = 6
	ctaTimeout    = 7
	ctaMark       = 8
	ctaID         = 12
	ctaNATDst     = 13
	ctaZone       = 18
	ctaTimestamp  = 20
	ctaLabels     = 22
	ctaLabelsMask = 23
	ctaStatusMask = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaProtoInfoTCP  = 1
	ctaTCPState      = 1
	ctaTCPScaleOrig  = 2
	ctaTCPScaleReply = 3
	ctaTCPFlagsOrig  = 4
	ctaTCPFlagsReply = 5

	ctaTimestampStart = 1

	ctaNATv4Min   = 1
	ctaNATv4Max   = 2
	ctaNATProto   = 3
	ctaNATv6Min   = 4
	ctaNATv6Max   = 5
	ctaNATPortMin = 1
	ctaNATPortMax = 2
)

const nfgenmsgSize = 4 // family, version, resource id

// decode reads the payload of an IPCTNL_MSG_CT_NEW message into e. It is false for an entry that isn't TCP; what is in e
// is undefined then, and after an error. Unknown attributes are skipped.
func decode(payload []byte, e *Entry) (bool, error) {
	if len(payload) < nfgenmsgSize {
		return false, ErrMalformed
	}
	*e = Entry{}
	a := nl.ParseAttrs(payload[nfgenmsgSize:])
	for a.Next() {
		if a.Type() == ctaTupleOrig {
			// The kernel puts this one first, so nothing else of an entry of another protocol is looked at.
			proto, err := decodeTuple(a.Value(), &e.Orig, &e.Zone)
			if err != nil || proto != unix.IPPROTO_TCP {
				return false, err
			}
			continue
		}
		if err := decodeAttr(&a, e); err != nil {
			return false, err
		}
	}
	if a.Err() != nil {
		return false, a.Err()
	}
	if !e.Orig.complete() || !e.Reply.complete() {
		return false, ErrMalformed
	}
	return true, nil
}

func decodeAttr(a *nl.Attrs, e *Entry) error {
	switch a.Type() {
	case ctaTupleReply:
		_, err := decodeTuple(a.Value(), &e.Reply, &e.ReplyZone)
		return err
	case ctaStatus:
		e.Status = a.Uint32()
	case ctaProtoInfo:
		return decodeProtoInfo(a.Value(), e)
	case ctaTimeout:
		e.Timeout = a.Uint32()
	case ctaMark:
		e.Mark = a.Uint32()
	case ctaID:
		e.ID = a.Uint32()
	case ctaZone:
		e.Zone = a.Uint16()
		e.ReplyZone = e.Zone
	case ctaTimestamp:
		return decodeTimestamp(a.Value(), e)
	case ctaLabels:
		copy(e.Label[:], a.Take(len(e.Label)))
	}
	return a.Err()
}

// complete tells whether both addresses are there and of one family.
func (t *Tuple) complete() bool {
	src, dst := t.Src.Addr(), t.Dst.Addr()
	return src.IsValid() && dst.IsValid() && src.Is4() == dst.Is4()
}

// decodeTuple returns the protocol. zone is left alone when the flow's zone holds for both directions.
func decodeTuple(b []byte, t *Tuple, zone *uint16) (proto uint8, err error) {
	a := nl.ParseAttrs(b)
	for a.Next() {
		switch a.Type() {
		case ctaTupleIP:
			err = decodeAddrs(a.Value(), t)
		case ctaTupleProto:
			proto, err = decodePorts(a.Value(), t)
		case ctaTupleZone:
			*zone = a.Uint16()
		}
		if err != nil {
			return 0, err
		}
	}
	return proto, a.Err()
}

func decodeAddrs(b []byte, t *Tuple) error {
	a := nl.ParseAttrs(b)
	for a.Next() {
		switch a.Type() {
		case ctaIPv4Src:
			t.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Take(4))), t.Src.Port())
		case ctaIPv4Dst:
			t.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Take(4))), t.Dst.Port())
		case ctaIPv6Src:
			t.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(a.Take(16))), t.Src.Port())
		case ctaIPv6Dst:
			t.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(a.Take(16))), t.Dst.Port())
		}
	}
	return a.Err()
}

func decodePorts(b []byte, t *Tuple) (proto uint8, err error) {
	a := nl.ParseAttrs(b)
	for a.Next() {
		switch a.Type() {
		case ctaProtoNum:
			proto = a.Uint8()
		case ctaProtoSrcPort:
			t.Src = netip.AddrPortFrom(t.Src.Addr(), a.Uint16())
		case ctaProtoDstPort:
			t.Dst = netip.AddrPortFrom(t.Dst.Addr(), a.Uint16())
		}
	}
	return proto, a.Err()
}

func decodeProtoInfo(b []byte, e *Entry) error {
	a := nl.ParseAttrs(b)
	for a.Next() {
		if a.Type() == ctaProtoInfoTCP {
			if err := decodeTCP(a.Value(), e); err != nil {
				return err
			}
		}
	}
	return a.Err()
}

// decodeTCP takes the flags from the first byte of struct nf_ct_tcp_flags; the second is their mask.
func decodeTCP(b []byte, e *Entry) error {
	a := nl.ParseAttrs(b)
	for a.Next() {
		switch a.Type() {
		case ctaTCPState:
			e.State = a.Uint8()
		case ctaTCPScaleOrig:
			e.OrigScale = a.Uint8()
		case ctaTCPScaleReply:
			e.ReplyScale = a.Uint8()
		case ctaTCPFlagsOrig:
			e.OrigFlags = a.Take(2)[0]
		case ctaTCPFlagsReply:
			e.ReplyFlags = a.Take(2)[0]
		}
	}
	return a.Err()
}

func decodeTimestamp(b []byte, e *Entry) error {
	a := nl.ParseAttrs(b)
	for a.Next() {
		if a.Type() == ctaTimestampStart {
			e.Start = int64(a.Uint64())
		}
	}
	return a.Err()
}
