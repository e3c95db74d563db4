package command

import (
	"fmt"
	"text/tabwriter"

	"curfew/ctpolicy/conntrack"
	"curfew/internal/netnstest"
	"curfew/reaper/challenge"
	"curfew/reaper/sockdiag"
	"curfew/rules"
)

// A capability is something that curfew needs of the kernel.
type capability struct {
	name, config, since string
	probe               func() error
}

// tableCapabilities are what the table needs.
func tableCapabilities() []capability {
	var list []capability
	for _, f := range rules.Features() {
		list = append(list, capability{f.Name, f.Config, f.Since, f.Probe})
	}
	return list
}

// capabilities is the one list of what the kernel must have.
func capabilities() []capability {
	return append(tableCapabilities(),
		capability{"entries by netlink", "CONFIG_NF_CT_NETLINK", "2.6.14", probeConntrack},
		capability{"birth times of entries", "CONFIG_NF_CONNTRACK_TIMESTAMP", "2.6.38", func() error {
			_, err := conntrack.Timestamps()
			return err
		}},
		capability{"ending sockets", "CONFIG_INET_DIAG_DESTROY", "4.9", probeSockets},
		capability{"raw sockets for challenges", "CONFIG_INET", "2.2", probeChallenge},
	)
}

func probeConntrack() error {
	k, err := openConntrack()
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Dump(conntrack.Filter{}, func(*conntrack.Entry) error { return nil })
}

func probeSockets() error {
	sockets, err := sockdiag.Open()
	if err != nil {
		return err
	}
	defer sockets.Close()
	return sockets.Probe()
}

func probeChallenge() error {
	sender, err := challenge.Open(challenge.Mark)
	if err != nil {
		return err
	}
	return sender.Close()
}

// showCapabilities prints a line for each, and fails when one is missing.
func showCapabilities(env *Env, host *netnstest.Host) error {
	table := tabwriter.NewWriter(env.Stdout, 0, 0, 2, ' ', 0)
	missing := 0
	for _, c := range capabilities() {
		if err := host.Do(c.probe); err != nil {
			missing++
			fmt.Fprintf(table, "no\t%s\tneeds %s, Linux %s: %v\n", c.name, c.config, c.since, err)
			continue
		}
		fmt.Fprintf(table, "yes\t%s\t%s, Linux %s\n", c.name, c.config, c.since)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if missing > 0 {
		return fmt.Errorf("this kernel lacks %d of the things that curfew needs", missing)
	}
	return nil
}
