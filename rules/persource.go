package rules

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
)

// A sourceLimit is a limit of flows for each client, in a set that the rules fill. The kernel copies the limit into each
// element, so the set's name holds it: another limit gets another set.
type sourceLimit struct {
	key     string // of the policy; also what its counter counts
	name    string // of the sets, without the family
	text    string
	timeout time.Duration // of an element; 0 for as long as it counts something
	limit   expr.Any
}

// sourceLimits are those of a policy. The number comes first: a flow that it refuses uses up no rate.
func sourceLimits(p *ctpolicy.Policy) (list []sourceLimit) {
	if n := p.MaxPerSource; n > 0 {
		list = append(list, sourceLimit{
			key: CountMaxPerSource, name: fmt.Sprintf("%s-max-%d-", p.Name, n), text: fmt.Sprintf("ct count over %d", n),
			limit: &expr.Connlimit{Count: n, Flags: expr.NFT_CONNLIMIT_F_INV},
		})
	}
	if r := p.NewPerSource; r.Count > 0 {
		list = append(list, sourceLimit{
			key: CountNewPerSource, name: fmt.Sprintf("%s-new-%d-%s-%d-", p.Name, r.Count, r.Unit(), r.Burst),
			text:    fmt.Sprintf("limit rate over %d/%s burst %d packets", r.Count, r.Unit(), r.Burst),
			timeout: r.Refill().Truncate(time.Second) + 2*time.Second, // by then the bucket is full again
			limit:   &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(r.Count), Over: true, Unit: limitUnits[r.Per], Burst: r.Burst},
		})
	}
	return list
}

var limitUnits = map[time.Duration]expr.LimitTime{
	time.Second: expr.LimitTimeSecond, time.Minute: expr.LimitTimeMinute, time.Hour: expr.LimitTimeHour, 24 * time.Hour: expr.LimitTimeDay,
}

// set is the limit's set of a family.
func (l *sourceLimit) set(f *family, size uint32) *nftables.Set {
	return &nftables.Set{Table: table, Name: l.name + f.name, Dynamic: true, HasTimeout: l.timeout > 0, Size: size, KeyType: f.address}
}

// perSource refuses flows that are too many for their client.
func (c *chain) perSource(p *ctpolicy.Policy) {
	for _, l := range sourceLimits(p) {
		for i := range families {
			c.add(syn(), ctNew(), families[i].over(p, &l), count(counterName(p.Name, l.key)), refuse(p))
		}
	}
}

// over is for a flow that is too many for its client.
func (f *family) over(p *ctpolicy.Policy, l *sourceLimit) clause {
	load, key := say("", f.load(f.source, reg)), f.field(f.source)
	if bits := p.SourceBits6(); f.nfproto == unix.NFPROTO_IPV6 && bits < 128 {
		m := prefixMask(bits)
		load.exprs = append(load.exprs, mask(m.AsSlice()))
		key += " & " + m.String()
	}
	set, do := &expr.Dynset{SrcRegKey: reg, SetName: l.name + f.name, Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: exprs{l.limit}}, "add"
	if l.timeout > 0 {
		set.Operation, set.Timeout, do = uint32(unix.NFT_DYNSET_OP_UPDATE), l.timeout, "update"
		key += " timeout " + nftTime(l.timeout)
	}
	return join(f.imply(), load, say(fmt.Sprintf("%s @%s { %s %s }", do, l.name+f.name, key, l.text), set))
}

// prefixMask is the netmask of an IPv6 prefix.
func prefixMask(bits int) netip.Addr {
	p, _ := netip.AddrFrom16(allOnes).Prefix(bits) // the policy has been validated
	return p.Addr()
}

var allOnes = func() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:], ^uint64(0))
	binary.BigEndian.PutUint64(b[8:], ^uint64(0))
	return b
}()

// refuse is what a flow too many gets; in report mode nothing.
func refuse(p *ctpolicy.Policy) clause {
	switch {
	case !p.Enforced():
		return clause{}
	case p.Refuse == ctpolicy.Drop:
		return drop()
	}
	return reject()
}

// limitRate lets so many packets a second through to the rest of the rule.
func limitRate(perSecond uint32) clause {
	const burst = 5 // nft's default
	return say(fmt.Sprintf("limit rate %d/second", perSecond), &expr.Limit{
		Type: expr.LimitTypePkts, Rate: uint64(perSecond), Unit: expr.LimitTimeSecond, Burst: burst,
	})
}
