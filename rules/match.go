package rules

import (
	"encoding/binary"
	"hash/fnv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// The functions here are the words of nft's language, as the expressions that nft would send for them.

type exprs = []expr.Any

const (
	reg      = unix.NFT_REG_1
	tcpFin   = 0x01
	tcpSyn   = 0x02
	tcpReset = 0x04
	tcpAck   = 0x10
)

// join makes one rule out of its words.
func join(words ...exprs) exprs {
	var rule exprs
	for _, w := range words {
		rule = append(rule, w...)
	}
	return rule
}

func equal(value []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: value} }

func notEqual(value []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: value} }

func mask(bits []byte) expr.Any {
	return &expr.Bitwise{
		SourceRegister: reg, DestRegister: reg, Len: uint32(len(bits)),
		Mask: bits, Xor: make([]byte, len(bits)),
	}
}

func native32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// meta l4proto tcp
func isTCP() exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal([]byte{unix.IPPROTO_TCP})}
}

// meta l4proto != tcp
func notTCP() exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, notEqual([]byte{unix.IPPROTO_TCP})}
}

// meta l4proto @set, where tcp is in the set for as long as something holds
func during(set string) exprs { return lookupProtocol(set, false) }

// meta l4proto != @set
func unlessDuring(set string) exprs { return lookupProtocol(set, true) }

func lookupProtocol(set string, invert bool) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Lookup{SourceRegister: reg, SetName: set, Invert: invert},
	}
}

// iif lo
func fromLoopback() exprs {
	const loopback = 1 // the kernel gives it this index in every namespace (dev_index_reserve in net/core/dev.c)
	return exprs{&expr.Meta{Key: expr.MetaKeyIIF, Register: reg}, equal(native32(loopback))}
}

// fib daddr type local; inverted: fib daddr type != local. At output `oif` would not do: it is the device from before NAT.
func toHere(invert bool) exprs {
	load := &expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}
	if invert {
		return exprs{load, notEqual(native32(unix.RTN_LOCAL))}
	}
	return exprs{load, equal(native32(unix.RTN_LOCAL))}
}

// tcp flags value / bits
func tcpFlags(bits, value byte) exprs {
	return join(isTCP(), exprs{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		mask([]byte{bits}), equal([]byte{value}),
	})
}

func syn() exprs { return tcpFlags(tcpFin|tcpSyn|tcpReset|tcpAck, tcpSyn) }

func loadCt(key expr.CtKey) expr.Any { return &expr.Ct{Key: key, Register: reg} }

// ct state new, or established
func ctState(bit uint32) exprs {
	return exprs{loadCt(expr.CtKeySTATE), mask(native32(bit)), notEqual(native32(0))}
}

// ct state != new
func ctStateIsNot(bit uint32) exprs {
	return exprs{loadCt(expr.CtKeySTATE), notEqual(native32(bit))}
}

// ct status & bits == value
func ctStatus(bits, value uint32) exprs {
	return exprs{loadCt(expr.CtKeySTATUS), mask(native32(bits)), equal(native32(value))}
}

// ct status & bits != value
func ctStatusIsNot(bits, value uint32) exprs {
	return exprs{loadCt(expr.CtKeySTATUS), mask(native32(bits)), notEqual(native32(value))}
}

// ct direction original
func ctOriginal() exprs { return exprs{loadCt(expr.CtKeyDIRECTION), equal([]byte{0})} }

// ct direction reply
func ctReply() exprs { return exprs{loadCt(expr.CtKeyDIRECTION), equal([]byte{1})} }

// ct expiration <= limit; the register holds milliseconds in the host's byte order
func ctExpires(limit time.Duration) exprs {
	return exprs{
		loadCt(expr.CtKeyEXPIRATION),
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLte, Register: reg, Data: binaryutil.BigEndian.PutUint32(uint32(limit.Milliseconds()))},
	}
}

// ct label bit
func ctLabel(bit int) exprs {
	return exprs{loadCt(expr.CtKeyLABELS), mask(labelBit(bit)), notEqual(labelBit(-1))}
}

// ct label ! bit
func ctLabelUnset(bit int) exprs {
	return exprs{loadCt(expr.CtKeyLABELS), mask(labelBit(bit)), equal(labelBit(-1))}
}

// ct label set bit
func setCtLabel(bit int) exprs {
	return exprs{
		&expr.Immediate{Register: reg, Data: labelBit(bit)},
		&expr.Ct{Key: expr.CtKeyLABELS, Register: reg, SourceRegister: true},
	}
}

// labelBit is a label with one bit set, or none.
func labelBit(bit int) []byte {
	var label conntrack.Label
	if bit >= 0 {
		label.Set(bit)
	}
	return label[:]
}

// ct original proto-dst vmap @name. The match on TCP stands right before it: nft leaves out words that it takes for
// implied, and then can't read its own output.
func vmapOriginalPort(name string) exprs {
	return join(isTCP(), exprs{
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg, Direction: 0},
		&expr.Lookup{SourceRegister: reg, SetName: name, IsDestRegSet: true},
	})
}

// tcp dport >= 32768
func toClient() exprs {
	return join(isTCP(), exprs{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg, Data: binaryutil.BigEndian.PutUint16(ctpolicy.ClientPort)},
	})
}

// tcp sport vmap @name
func vmapSourcePort(name string) exprs {
	return join(isTCP(), exprs{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Lookup{SourceRegister: reg, SetName: name, IsDestRegSet: true},
	})
}

// tcp dport vmap @name
func vmapPort(name string) exprs {
	return exprs{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, SetName: name, IsDestRegSet: true},
	}
}

// A family is what differs between IPv4 and IPv6.
type family struct {
	name         string // in the names of sets
	nfproto      byte
	source, dest uint32 // offsets of the addresses in the network header
	length       uint32
	regs         [4]uint32 // where saddr, sport, daddr and dport go, so that they are one key
	address      nftables.SetDatatype
}

var families = []family{
	{"4", unix.NFPROTO_IPV4, 12, 16, 4, [4]uint32{reg, unix.NFT_REG32_01, unix.NFT_REG32_02, unix.NFT_REG32_03}, nftables.TypeIPAddr},
	{"6", unix.NFPROTO_IPV6, 8, 24, 16, [4]uint32{reg, unix.NFT_REG_2, unix.NFT_REG32_05, unix.NFT_REG32_09}, nftables.TypeIP6Addr},
}

// meta nfproto ipv4, or ipv6
func (f *family) is() exprs {
	return exprs{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equal([]byte{f.nfproto})}
}

// ip saddr @set, or ip daddr; inverted: ip saddr != @set
func (f *family) lookup(offset uint32, set string, invert bool) exprs {
	return join(f.is(), exprs{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length},
		&expr.Lookup{SourceRegister: reg, SetName: set, Invert: invert},
	})
}

// ip saddr . tcp sport . ip daddr . tcp dport
func (f *family) tuple() exprs {
	load := func(dest uint32, base expr.PayloadBase, offset, length uint32) expr.Any {
		return &expr.Payload{DestRegister: dest, Base: base, Offset: offset, Len: length}
	}
	return join(f.is(), isTCP(), exprs{
		load(f.regs[0], expr.PayloadBaseNetworkHeader, f.source, f.length),
		load(f.regs[1], expr.PayloadBaseTransportHeader, 0, 2),
		load(f.regs[2], expr.PayloadBaseNetworkHeader, f.dest, f.length),
		load(f.regs[3], expr.PayloadBaseTransportHeader, 2, 2),
	})
}

// update @set { ip saddr . tcp sport . ip daddr . tcp dport timeout d }
func (f *family) update(set string, d time.Duration) exprs {
	return join(f.tuple(), exprs{&expr.Dynset{
		SrcRegKey: reg, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: d,
	}})
}

// ip saddr . tcp sport . ip daddr . tcp dport != @set
func (f *family) missing(set string) exprs {
	return join(f.tuple(), exprs{&expr.Lookup{SourceRegister: reg, SetName: set, Invert: true}})
}

// tcp sport . tcp dport @set
func portsIn(set string) exprs {
	return join(isTCP(), exprs{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Payload{DestRegister: unix.NFT_REG32_01, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, SetName: set},
	})
}

// ct timeout set "name"
func setCtTimeout(name string) exprs {
	return exprs{&expr.Objref{Type: unix.NFT_OBJECT_CT_TIMEOUT, Name: name}}
}

// counter name "name" reject with tcp reset
func countReset(counter string) exprs {
	return exprs{
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}
}

func leave() exprs { return exprs{&expr.Verdict{Kind: expr.VerdictReturn}} }

// accept ends the hook for us; the chains of others still see the packet.
func accept() exprs { return exprs{&expr.Verdict{Kind: expr.VerdictAccept}} }

func drop() exprs { return exprs{&expr.Verdict{Kind: expr.VerdictDrop}} }

// comment is a rule's comment as nft writes and reads it.
func comment(text string) []byte { return userdata.AppendString(nil, userdata.TypeComment, text) }

func hash(t conntrack.Timeouts) uint32 {
	h := fnv.New32a()
	_ = binary.Write(h, binary.BigEndian, t[:]) // a hash takes everything
	return h.Sum32()
}
