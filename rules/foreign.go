package rules

import (
	"fmt"

	"github.com/google/nftables"
)

// foreignAttempts is how often the walk begins again, when a table changes under it.
const foreignAttempts = 3

// ruleTest tells whether a rule is one of those wanted. It may ask for more of the rule's table.
type ruleTest func(*nftables.Conn, *nftables.Rule) (bool, error)

// foreignChains names the chains of other tables that have a wanted rule, as "ip mangle PREROUTING".
func foreignChains(wanted ruleTest) (names []string, err error) {
	library.Lock()
	defer library.Unlock()
	for range foreignAttempts {
		if names, err = walkForeign(wanted); err == nil {
			return names, nil
		}
	}
	return nil, err
}

func walkForeign(wanted ruleTest) ([]string, error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of other tables: %w", err)
	}
	var names []string
	for _, c := range chains {
		if c.Table.Family == nftables.TableFamilyINet && c.Table.Name == TableName {
			continue
		}
		name := fmt.Sprintf("%s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name)
		has, err := hasRule(conn, c, wanted)
		if err != nil {
			return nil, fmt.Errorf("list chain %s: %w", name, err)
		}
		if has {
			names = append(names, name)
		}
	}
	return names, nil
}

func hasRule(conn *nftables.Conn, c *nftables.Chain, wanted ruleTest) (bool, error) {
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return false, err
	}
	for _, r := range rules {
		if is, err := wanted(conn, r); is || err != nil {
			return is, err
		}
	}
	return false, nil
}

// familyName is nft's word for a family.
func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyNetdev:
		return "netdev"
	case nftables.TableFamilyBridge:
		return "bridge"
	}
	return fmt.Sprintf("family %d", f)
}
