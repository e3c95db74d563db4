package rules

import (
	"fmt"
	"time"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// The functions here are the words of nft's language.

const (
	reg      = unix.NFT_REG_1
	tcpFin   = 0x01
	tcpSyn   = 0x02
	tcpReset = 0x04
	tcpAck   = 0x10
)

func loadProtocol() expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg} }

func isTCP() clause {
	return say("meta l4proto tcp", loadProtocol(), equal([]byte{unix.IPPROTO_TCP}))
}

// implyTCP is for words that nft takes for TCP's.
func implyTCP() clause { return say("", isTCP().exprs...) }

func notTCP() clause {
	return say("meta l4proto != tcp", loadProtocol(), notEqual([]byte{unix.IPPROTO_TCP}))
}

// during holds where TCP is in the set, for as long as something lasts.
func during(set string) clause {
	return say("meta l4proto @"+set, loadProtocol(), &expr.Lookup{SourceRegister: reg, SetName: set})
}

func unlessDuring(set string) clause {
	return say("meta l4proto != @"+set, loadProtocol(), &expr.Lookup{SourceRegister: reg, SetName: set, Invert: true})
}

func fromLoopback() clause {
	const loopback = 1 // the kernel gives it this index in every namespace (dev_index_reserve in net/core/dev.c)
	return say(`iif "lo"`, &expr.Meta{Key: expr.MetaKeyIIF, Register: reg}, equal(native32(loopback)))
}

// toHere is for packets to this host. At output `oif` would not do: it is the device from before NAT.
func toHere() clause {
	return say("fib daddr type local", &expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}, equal(native32(unix.RTN_LOCAL)))
}

func toElsewhere() clause {
	return say("fib daddr type != local", &expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}, notEqual(native32(unix.RTN_LOCAL)))
}

func loadPort(offset uint32, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// Offsets in the TCP header.
const (
	sourcePort = 0
	destPort   = 2
	flagsByte  = 13
)

func tcpFlags(text string, bits, value byte) clause {
	return join(implyTCP(), say("tcp flags "+text,
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: flagsByte, Len: 1},
		mask([]byte{bits}), equal([]byte{value})))
}

func syn() clause {
	return tcpFlags("syn / fin,syn,rst,ack", tcpFin|tcpSyn|tcpReset|tcpAck, tcpSyn)
}

func notSyn() clause { return tcpFlags("! syn", tcpSyn, 0) }

func isReset() clause { return tcpFlags("& rst == rst", tcpReset, tcpReset) }

func loadCt(key expr.CtKey) expr.Any { return &expr.Ct{Key: key, Register: reg} }

func ctNew() clause {
	return say("ct state new", loadCt(expr.CtKeySTATE), mask(native32(expr.CtStateBitNEW)), notEqual(native32(0)))
}

func ctEstablished() clause {
	return say("ct state established", loadCt(expr.CtKeySTATE), mask(native32(expr.CtStateBitESTABLISHED)), notEqual(native32(0)))
}

func ctNotNew() clause {
	return say("ct state != new", loadCt(expr.CtKeySTATE), notEqual(native32(expr.CtStateBitNEW)))
}

// pinned is the packets of flows whose timeout is fixed.
func pinned() clause {
	return say("ct status 0x400", loadCt(expr.CtKeySTATUS), mask(native32(conntrack.StatusFixedTimeout)), notEqual(native32(0)))
}

// unpinned is the others: nearly all.
func unpinned() clause {
	return say("ct status ! 0x400", loadCt(expr.CtKeySTATUS), mask(native32(conntrack.StatusFixedTimeout)), equal(native32(0)))
}

// notOpen is the packets of flows that are not assured, or pinned.
func notOpen() clause {
	const open = conntrack.StatusAssured
	return say("ct status != assured / assured,0x400", loadCt(expr.CtKeySTATUS), mask(native32(open|conntrack.StatusFixedTimeout)), notEqual(native32(open)))
}

func ctOriginal() clause {
	return say("ct direction original", loadCt(expr.CtKeyDIRECTION), equal([]byte{0}))
}

func ctReply() clause {
	return say("ct direction reply", loadCt(expr.CtKeyDIRECTION), equal([]byte{1}))
}

// ctExpires is for entries with at most so much time left. The register holds milliseconds in the host's byte order.
func ctExpires(limit time.Duration) clause {
	return say("ct expiration <= "+nftTime(limit), loadCt(expr.CtKeyEXPIRATION),
		&expr.Byteorder{SourceRegister: reg, DestRegister: reg, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLte, Register: reg, Data: binaryutil.BigEndian.PutUint32(uint32(limit.Milliseconds()))})
}

func ctLabel(bit int) clause {
	return say(fmt.Sprintf("ct label %d", bit), loadCt(expr.CtKeyLABELS), mask(labelBit(bit)), notEqual(labelBit(-1)))
}

func ctLabelUnset(bit int) clause {
	return say(fmt.Sprintf("ct label ! %d", bit), loadCt(expr.CtKeyLABELS), mask(labelBit(bit)), equal(labelBit(-1)))
}

func setCtLabel(bit int) clause {
	return say(fmt.Sprintf("ct label set %d", bit), &expr.Immediate{Register: reg, Data: labelBit(bit)},
		&expr.Ct{Key: expr.CtKeyLABELS, Register: reg, SourceRegister: true})
}

// labelBit is a label with one bit set, or none.
func labelBit(bit int) []byte {
	var label conntrack.Label
	if bit >= 0 {
		label.Set(bit)
	}
	return label[:]
}

func lookupVerdict(m string) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: m, IsDestRegSet: true}
}

// vmapOriginalPort goes by the port that the client dialled. The match on TCP stands right before it: nft leaves out words
// that it takes for implied, and then can't read its own output.
func vmapOriginalPort(m string) clause {
	return join(isTCP(), say("ct original proto-dst vmap @"+m, &expr.Ct{Key: expr.CtKeyPROTODST, Register: reg, Direction: 0}, lookupVerdict(m)))
}

// toClient is for packets to a port that may be a client's.
func toClient() clause {
	return join(implyTCP(), say(fmt.Sprintf("tcp dport >= %d", ctpolicy.ClientPort), loadPort(destPort, reg),
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg, Data: binaryutil.BigEndian.PutUint16(ctpolicy.ClientPort)}))
}

func vmapSourcePort(m string) clause {
	return join(implyTCP(), say("tcp sport vmap @"+m, loadPort(sourcePort, reg), lookupVerdict(m)))
}

func vmapPort(m string) clause {
	return join(implyTCP(), say("tcp dport vmap @"+m, loadPort(destPort, reg), lookupVerdict(m)))
}

func portsIn(set string) clause {
	return join(implyTCP(), say("tcp sport . tcp dport @"+set, loadPort(sourcePort, reg), loadPort(destPort, unix.NFT_REG32_01),
		&expr.Lookup{SourceRegister: reg, SetName: set}))
}

func setCtTimeout(name string) clause {
	return say(fmt.Sprintf("ct timeout set %q", name), &expr.Objref{Type: unix.NFT_OBJECT_CT_TIMEOUT, Name: name})
}

func count(counter string) clause {
	return say(fmt.Sprintf("counter name %q", counter), &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter})
}

func reject() clause {
	return say("reject with tcp reset", &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

func countReset(counter string) clause { return join(count(counter), reject()) }

func leave() clause { return say("return", &expr.Verdict{Kind: expr.VerdictReturn}) }

// accept ends the hook for us; the chains of others still see the packet.
func accept() clause { return say("accept", &expr.Verdict{Kind: expr.VerdictAccept}) }

func drop() clause { return say("drop", &expr.Verdict{Kind: expr.VerdictDrop}) }

func jump(chain string) clause {
	return say("jump "+chain, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
}

func goTo(chain string) clause {
	return say("goto "+chain, &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}

func marked(mark uint32) clause {
	return say(fmt.Sprintf("meta mark 0x%08x", mark), &expr.Meta{Key: expr.MetaKeyMARK, Register: reg}, equal(native32(mark)))
}

func notrack() clause { return say("notrack", &expr.Notrack{}) }
