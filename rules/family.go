package rules

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A family is what differs between IPv4 and IPv6.
type family struct {
	name         string // in the names of sets
	header       string // nft's word for its header
	protocol     string // and for itself
	nfproto      byte
	source, dest uint32 // offsets of the addresses in the network header
	length       uint32
	regs         [4]uint32 // where saddr, sport, daddr and dport go, so that they are one key
	address      nftables.SetDatatype
}

var families = []family{
	{"4", "ip", "ipv4", unix.NFPROTO_IPV4, 12, 16, 4, [4]uint32{reg, unix.NFT_REG32_01, unix.NFT_REG32_02, unix.NFT_REG32_03}, nftables.TypeIPAddr},
	{"6", "ip6", "ipv6", unix.NFPROTO_IPV6, 8, 24, 16, [4]uint32{reg, unix.NFT_REG_2, unix.NFT_REG32_05, unix.NFT_REG32_09}, nftables.TypeIP6Addr},
}

// is is for packets of the family.
func (f *family) is() clause { return say("meta nfproto "+f.protocol, f.imply().exprs...) }

// imply is for words that nft takes for the family's.
func (f *family) imply() clause {
	return say("", &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equal([]byte{f.nfproto}))
}

func (f *family) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length}
}

// field is nft's word for the address at an offset: ip saddr, or ip daddr.
func (f *family) field(offset uint32) string {
	if offset == f.source {
		return f.header + " saddr"
	}
	return f.header + " daddr"
}

func (f *family) in(offset uint32, set string) clause {
	return join(f.imply(), say(f.field(offset)+" @"+set, f.load(offset, reg), &expr.Lookup{SourceRegister: reg, SetName: set}))
}

func (f *family) notIn(offset uint32, set string) clause {
	return join(f.imply(), say(f.field(offset)+" != @"+set, f.load(offset, reg), &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true}))
}

// tupleText is the packet's addresses and ports.
func (f *family) tupleText() string {
	return fmt.Sprintf("%[1]s saddr . tcp sport . %[1]s daddr . tcp dport", f.header)
}

func (f *family) loadTuple() clause {
	return join(f.imply(), implyTCP(), say("", f.load(f.source, f.regs[0]), loadPort(sourcePort, f.regs[1]),
		f.load(f.dest, f.regs[2]), loadPort(destPort, f.regs[3])))
}

// update gives the packet's tuple a place in the set for a time, from now on.
func (f *family) update(set string, d time.Duration) clause {
	return join(f.loadTuple(), say(fmt.Sprintf("update @%s { %s timeout %s }", set, f.tupleText(), nftTime(d)), &expr.Dynset{
		SrcRegKey: reg, SetName: set, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: d,
	}))
}

// missing is for packets whose tuple is not in the set.
func (f *family) missing(set string) clause {
	return join(f.loadTuple(), say(f.tupleText()+" != @"+set, &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true}))
}
