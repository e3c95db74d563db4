package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
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
	if old != nil && old.RegisterSize != 0 && old.RegisterSize != c.RegisterSize {
		return fmt.Errorf("%w: it is %d; run `curfew remove` first, or apply with --register-size %d",
			ErrRegisterSize, old.RegisterSize, old.RegisterSize)
	}
	err = change(old, &c)
	if errors.Is(err, unix.ENOBUFS) {
		// The kernel's answers did not fit. It may have done it all the same.
		if in, again := Read(); again == nil && in.Same(c.Policies) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	return settle()
}

// change makes the transaction.
func change(old *Installed, c *Config) error {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	tx := transaction{Conn: conn, config: c, old: old, wanted: wantedSets(c), there: map[object]bool{}}
	if old != nil {
		for _, o := range old.objects {
			tx.there[o] = true
		}
	}
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
	wanted []filledSet
	there  map[object]bool // the old objects
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
	tx.elements()
	if tx.config.Adopting {
		tx.fail(refresh(tx.Conn, aliveSet(), Heartbeat, "apply"))
	}
	if tx.config.Adopt > 0 && !tx.same() {
		tx.fail(refresh(tx.Conn, adoptSet(), tx.config.Adopt, ""))
	}
}

func (tx *transaction) fail(err error) { tx.err = errors.Join(tx.err, err) }

// same tells whether the policies are those that are installed.
func (tx *transaction) same() bool { return tx.old != nil && tx.old.Same(tx.config.Policies) }

// has tells whether the table has the set already.
func (tx *transaction) has(set string) bool {
	return tx.old != nil && slices.Contains(tx.old.sets, set)
}

// clear empties the chains and sets that are filled again below. The notes stay.
func (tx *transaction) clear() {
	if tx.old == nil {
		return
	}
	for _, name := range tx.old.chains {
		if name != chainAbout {
			tx.FlushChain(&nftables.Chain{Name: name, Table: table})
		}
	}
	if !tx.same() {
		// What is registered has the limits of before. Its owner takes the flows' labels away, too.
		for i := range families {
			tx.flush(flowsSet(&families[i]))
		}
	}
}

func (tx *transaction) flush(set string) {
	if tx.has(set) {
		tx.FlushSet(&nftables.Set{Table: table, Name: set})
	}
}

// sets makes the sets that are not there yet, and fills those whose elements don't change by themselves.
func (tx *transaction) sets() {
	for _, set := range tx.wanted {
		switch {
		case !tx.has(set.Name):
			tx.fail(tx.AddSet(set.Set, nil))
		case !set.HasTimeout && !set.Dynamic:
			tx.flush(set.Name)
		}
	}
}

// elements come after the chains that they lead to.
func (tx *transaction) elements() {
	for _, set := range tx.wanted {
		for part := range slices.Chunk(set.elements, maxElements) {
			tx.fail(tx.SetAddElements(set.Set, part))
		}
	}
}

// maxElements is how many elements fit into one message.
const maxElements = 1000

// objects adds counters and ct timeout objects that are not there yet.
func (tx *transaction) objects() {
	tx.object(counterStray, nftables.ObjTypeCounter, &expr.Counter{})
	for i := range tx.config.Policies {
		p := &tx.config.Policies[i]
		for _, count := range counts(p) {
			tx.object(counterName(p.Name, count), nftables.ObjTypeCounter, &expr.Counter{})
		}
		if !p.Ends() || !p.Enforced() {
			continue
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
	if !tx.there[object{name, kind}] {
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

// dropUnwanted deletes chains, sets and objects of policies that are no more. Objects with other values of a policy that is
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
	wanted := map[string]bool{}
	for _, set := range tx.wanted {
		wanted[set.Name] = true
	}
	for _, name := range tx.old.sets {
		if !wanted[name] {
			tx.DelSet(&nftables.Set{Table: table, Name: name})
		}
	}
	for _, o := range tx.old.objects {
		if o.name != counterStray && !slices.ContainsFunc(tx.config.Policies, func(p ctpolicy.Policy) bool { return o.of(p.Name) }) {
			tx.DeleteObject(&nftables.NamedObj{Table: table, Name: o.name, Type: o.kind})
		}
	}
}

func (tx *transaction) addRules(c *chain) {
	for _, r := range c.rules {
		rule := &nftables.Rule{Table: table, Chain: c.object(), Exprs: r.clause.exprs}
		if r.comment != "" {
			rule.UserData = comment(r.comment)
		}
		tx.AddRule(rule)
	}
}

func (c *chain) object() *nftables.Chain {
	o := &nftables.Chain{Name: c.name, Table: table}
	if c.hook != nil {
		accept := nftables.ChainPolicyAccept
		o.Type, o.Hooknum, o.Priority, o.Policy = nftables.ChainTypeFilter, c.hook, &c.priority, &accept
	}
	return o
}
