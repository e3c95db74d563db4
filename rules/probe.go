package rules

import (
	"fmt"
	"os"
	"time"

	"github.com/google/nftables"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A Feature is something that the table needs of the kernel.
type Feature struct {
	Name string
	// Config are the kernel's build options that bring it.
	Config string
	// Since is the first Linux version that has it.
	Since string
	build func(tx *nftables.Conn, t *nftables.Table) error
}

// Probe answers nil when the kernel has the feature. It builds a table with it and deletes that in the same
// transaction, so nothing is ever installed.
func (f Feature) Probe() error {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	t := conn.AddTable(&nftables.Table{Name: fmt.Sprintf("%s-probe-%d", TableName, os.Getpid()), Family: nftables.TableFamilyINet})
	if err := f.build(conn, t); err != nil {
		return fmt.Errorf("probe %s: %w", f.Name, err)
	}
	conn.DelTable(t)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("probe %s: %w", f.Name, explainPermission(err))
	}
	return nil
}

// Features are what the table needs, the most basic first.
func Features() []Feature {
	return []Feature{
		{"nf_tables", "CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET", "5.2", nothing},
		{"connection tracking in rules", "CONFIG_NF_CONNTRACK, CONFIG_NFT_CT", "5.2", hooked(nftables.ChainHookOutput,
			ctExpires(ctpolicy.Window), notrack())},
		{"reject with tcp reset before routing", "CONFIG_NFT_REJECT, CONFIG_NFT_REJECT_INET", "5.9", hooked(nftables.ChainHookPrerouting,
			isTCP(), reject())},
		{"ct timeout objects", "CONFIG_NF_CONNTRACK_TIMEOUT, CONFIG_NFT_OBJREF", "5.2", ctTimeoutObject},
		{"ct labels", "CONFIG_NF_CONNTRACK_LABELS", "5.2", hooked(nftables.ChainHookOutput, setCtLabel(ctpolicy.LabelTracked))},
		{"local addresses in rules", "CONFIG_NFT_FIB_INET", "5.2", hooked(nftables.ChainHookOutput, toHere())},
		{"sets that rules fill", "CONFIG_NF_TABLES", "5.2", dynamicSet},
		{"limits per source", "CONFIG_NFT_CONNLIMIT, CONFIG_NFT_LIMIT", "4.18", perSource},
	}
}

func nothing(*nftables.Conn, *nftables.Table) error { return nil }

// hooked makes a rule of the clauses in a chain at the hook.
func hooked(hook *nftables.ChainHook, clauses ...clause) func(*nftables.Conn, *nftables.Table) error {
	return func(tx *nftables.Conn, t *nftables.Table) error {
		tx.AddRule(&nftables.Rule{Table: t, Chain: probeAt(tx, t, hook), Exprs: join(clauses...).exprs})
		return nil
	}
}

func probeAt(tx *nftables.Conn, t *nftables.Table, hook *nftables.ChainHook) *nftables.Chain {
	return tx.AddChain(&nftables.Chain{
		Name: "probe", Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityMangle,
	})
}

func ctTimeoutObject(tx *nftables.Conn, t *nftables.Table) error {
	tx.AddObj(&nftables.NamedObj{
		Table: t, Name: "probe", Type: nftables.ObjTypeCtTimeout, Obj: ctTimeout(conntrack.DefaultTimeouts()),
	})
	return hooked(nftables.ChainHookOutput, ctNew(), setCtTimeout("probe"))(tx, t)
}

func dynamicSet(tx *nftables.Conn, t *nftables.Table) error {
	for i := range families {
		set := families[i].flows(flowsSet(&families[i]), 16, "")
		set.Table = t
		if err := tx.AddSet(set, nil); err != nil {
			return err
		}
		tx.AddRule(&nftables.Rule{
			Table: t, Chain: probeAt(tx, t, nftables.ChainHookOutput), Exprs: families[i].update(set.Name, ctpolicy.Window).exprs,
		})
	}
	return nil
}

func perSource(tx *nftables.Conn, t *nftables.Table) error {
	p := &ctpolicy.Policy{Name: "probe", MaxPerSource: 1, NewPerSource: ctpolicy.SourceRate{Count: 1, Per: time.Second, Burst: 1}}
	for _, l := range sourceLimits(p) {
		for i := range families {
			set := l.set(&families[i], 16)
			set.Table = t
			if err := tx.AddSet(set, nil); err != nil {
				return err
			}
			tx.AddRule(&nftables.Rule{Table: t, Chain: probeAt(tx, t, nftables.ChainHookOutput), Exprs: families[i].over(p, &l).exprs})
		}
	}
	return nil
}
