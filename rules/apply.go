package rules

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// ErrRegisterSize says that the installed register has another size.
var ErrRegisterSize = errors.New("the register's size can't be changed while the table is installed")

// Apply makes the table what the configuration says, in one transaction. An installed table is changed by difference:
// counters keep their values, the register its flows, and live flows their ct timeout object, which replacing would
// detach. Rules and the maps of ports are always replaced.
func Apply(c Config) error {
	old, err := Read()
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return err
	}
	if old != nil && old.RegisterSize != c.RegisterSize {
		return fmt.Errorf("%w: it is %d; run `curfew remove` first, or apply with --register-size %d",
			ErrRegisterSize, old.RegisterSize, old.RegisterSize)
	}
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	tx := transaction{Conn: conn, config: &c, old: old}
	tx.build()
	if tx.err != nil {
		return fmt.Errorf("build table inet curfew: %w", tx.err)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install table inet curfew: %w", explainPermission(err))
	}
	return nil
}

// ErrPermission says that the process may not change the rules.
var ErrPermission = errors.New("needs CAP_NET_ADMIN")

func explainPermission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (%w)", ErrPermission, err)
	}
	return err
}

// A transaction collects what changes the old table, nil for none, into the new one.
type transaction struct {
	*nftables.Conn
	config *Config
	old    *Installed
	err    error
}

func (tx *transaction) build() {
	tx.AddTable(table)
	tx.clear()
	tx.sets()
	tx.objects()
	list := chains(tx.config)
	tx.about()
	for i := range list {
		tx.AddChain(list[i].object())
	}
	tx.dropUnwanted(list)
	for i := range list {
		tx.addRules(&list[i])
	}
	tx.ports(mapTrack, trackChain)
	tx.ports(mapEnforce, enforceChain)
	if tx.config.Adopting {
		tx.fail(tx.SetAddElements(aliveSet(), heartbeat(Heartbeat, "apply")))
	}
}

func (tx *transaction) fail(err error) { tx.err = errors.Join(tx.err, err) }

// clear empties the chains and maps that are filled again below. The notes stay.
func (tx *transaction) clear() {
	if tx.old == nil {
		return
	}
	for _, name := range tx.old.chains {
		if name != chainAbout {
			tx.FlushChain(&nftables.Chain{Name: name, Table: table})
		}
	}
	if !tx.old.Same(tx.config.Policies) {
		// What is registered has the limits of before. Its owner takes the flows' labels away, too.
		for i := range registers {
			tx.FlushSet(&nftables.Set{Table: table, Name: registers[i].set})
		}
	}
	for _, name := range []string{mapTrack, mapEnforce} {
		if slices.Contains(tx.old.sets, name) {
			tx.FlushSet(portMap(name))
		}
	}
	if tx.config.Adopting && tx.old.Reaper.Alive {
		tx.fail(tx.SetDeleteElements(aliveSet(), heartbeat(0, "")))
	}
}

func (tx *transaction) sets() {
	want := []*nftables.Set{aliveSet()}
	for i := range registers {
		want = append(want, registers[i].object(tx.config.RegisterSize))
	}
	want = append(want, portMap(mapTrack), portMap(mapEnforce))
	for _, set := range want {
		if tx.old == nil || !slices.Contains(tx.old.sets, set.Name) {
			tx.fail(tx.AddSet(set, nil))
		}
	}
}

// objects adds counters and ct timeout objects that are not there yet.
func (tx *transaction) objects() {
	for i := range tx.config.Policies {
		p := &tx.config.Policies[i]
		for _, count := range countNames {
			tx.object(counterName(p.Name, count), nftables.ObjTypeCounter, &expr.Counter{})
		}
		timeouts := p.Timeouts(tx.config.Defaults)
		tx.object(timeoutName(p.Name, timeouts), nftables.ObjTypeCtTimeout, ctTimeout(timeouts))
	}
}

// ctTimeout names all states: the library fills the others with what it was given last.
func ctTimeout(timeouts conntrack.Timeouts) *expr.CtTimeout {
	policy := expr.CtStatePolicyTimeout{}
	for state, seconds := range timeouts {
		policy[uint16(state)] = seconds
	}
	return &expr.CtTimeout{L3Proto: unix.NFPROTO_INET, L4Proto: unix.IPPROTO_TCP, Policy: policy}
}

func (tx *transaction) object(name string, kind nftables.ObjType, value expr.Any) {
	if tx.old == nil || !slices.Contains(tx.old.objects, object{name, kind}) {
		tx.AddObj(&nftables.NamedObj{Table: table, Name: name, Type: kind, Obj: value})
	}
}

// about keeps the notes in a chain that no packet reaches.
func (tx *transaction) about() {
	notes := tx.config.Notes
	if tx.old == nil {
		tx.AddChain(&nftables.Chain{Name: chainAbout, Table: table})
		notes = append([]string{format}, notes...)
	}
	for _, note := range notes {
		tx.AddRule(noteRule(note))
	}
}

// dropUnwanted deletes chains and objects of policies that are no more. Objects with other values of a policy that is
// still there stay for the flows that have them.
func (tx *transaction) dropUnwanted(list []chain) {
	if tx.old == nil {
		return
	}
	for _, name := range tx.old.chains {
		if name != chainAbout && !slices.ContainsFunc(list, func(c chain) bool { return c.name == name }) {
			tx.DelChain(&nftables.Chain{Name: name, Table: table})
		}
	}
	for _, o := range tx.old.objects {
		if !slices.ContainsFunc(tx.config.Policies, func(p ctpolicy.Policy) bool { return o.of(p.Name) }) {
			tx.DeleteObject(&nftables.NamedObj{Table: table, Name: o.name, Type: o.kind})
		}
	}
}

func (tx *transaction) addRules(c *chain) {
	for _, r := range c.rules {
		rule := &nftables.Rule{Table: table, Chain: c.object(), Exprs: r.exprs}
		if r.comment != "" {
			rule.UserData = comment(r.comment)
		}
		tx.AddRule(rule)
	}
}

// maxElements is how many elements fit into one message.
const maxElements = 1000

// ports fills a map from ports to the policies' chains.
func (tx *transaction) ports(name string, chainOf func(policy string) string) {
	var elements []nftables.SetElement
	for _, p := range tx.config.Policies {
		for _, r := range p.Ports {
			elements = append(elements, interval(r, chainOf(p.Name))...)
		}
	}
	for part := range slices.Chunk(elements, maxElements) {
		tx.fail(tx.SetAddElements(portMap(name), part))
	}
}

// interval is a range of ports as the kernel keeps it: half open, and without an end at the top.
func interval(r ctpolicy.PortRange, target string) []nftables.SetElement {
	elements := []nftables.SetElement{{
		Key:         binaryutil.BigEndian.PutUint16(r.First),
		VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: target},
	}}
	if r.Last < 65535 {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(r.Last + 1), IntervalEnd: true})
	}
	return elements
}

func (c *chain) object() *nftables.Chain {
	o := &nftables.Chain{Name: c.name, Table: table}
	if c.hook != nil {
		accept := nftables.ChainPolicyAccept
		o.Type, o.Hooknum, o.Priority, o.Policy = nftables.ChainTypeFilter, c.hook, &c.priority, &accept
	}
	return o
}

func portMap(name string) *nftables.Set {
	return &nftables.Set{
		Table: table, Name: name, IsMap: true, Interval: true,
		KeyType: nftables.TypeInetService, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.BigEndian,
	}
}

func aliveSet() *nftables.Set {
	return &nftables.Set{
		Table: table, Name: setAlive, KeyType: nftables.TypeInetProto, HasTimeout: true,
		Comment: "refreshed by the reaper; while tcp is in it the fallback sleeps",
	}
}

func (r *register) object(size uint32) *nftables.Set {
	address := nftables.TypeIPAddr
	if r.nfproto == unix.NFPROTO_IPV6 {
		address = nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: table, Name: r.set, Dynamic: true, HasTimeout: true, Size: size,
		KeyType: nftables.MustConcatSetType(address, nftables.TypeInetService, address, nftables.TypeInetService),
		Comment: "the fallback's register: flows and the time left to max_age",
	}
}

// heartbeat is the element that puts the fallback to sleep.
func heartbeat(timeout time.Duration, who string) []nftables.SetElement {
	return []nftables.SetElement{{Key: []byte{unix.IPPROTO_TCP}, Timeout: timeout, Comment: who}}
}
