package command

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper"
	"curfew/reaper/challenge"
	"curfew/reaper/sockdiag"
	"curfew/rules"
)

// dumpBuffer is the receive buffer of the sweep: the kernel stops a dump while it is full.
const dumpBuffer = 1 << 20

// A kernel holds the open doors to the kernel that a reaper needs.
type kernel struct {
	*conntrack.Dumper
	*conntrack.Table
	sockets    *sockdiag.Conn
	challenges *challenge.Sender
	mark       uint32 // of challenges
	resets     *rules.Resets
	local      local
}

// openKernel opens all doors and looks through each once: that loads modules, so that nothing is late later, and tells
// what is missing before anything is changed.
func openKernel(mark uint32) (*kernel, error) {
	k, err := openConntrack()
	if err != nil {
		return nil, err
	}
	if err := k.openEnds(mark); err != nil {
		k.Close()
		return nil, explain(err)
	}
	return k, nil
}

// openEnds opens the doors to the ends of connections.
func (k *kernel) openEnds(mark uint32) (err error) {
	if k.sockets, err = sockdiag.Open(); err != nil {
		return err
	}
	if err = k.sockets.Probe(); err != nil {
		return err
	}
	if k.resets, err = rules.OpenResets(); err != nil {
		return err
	}
	return k.useMark(mark)
}

// useMark gives challenges another mark, unless they have it.
func (k *kernel) useMark(mark uint32) error {
	if k.challenges != nil && k.mark == mark {
		return nil
	}
	sender, err := challenge.Open(mark)
	if err != nil {
		return err
	}
	if k.challenges != nil {
		k.challenges.Close()
	}
	k.challenges, k.mark = sender, mark
	return nil
}

// openConntrack opens only the doors to conntrack.
func openConntrack() (*kernel, error) {
	dumper, err := conntrack.Open(dumpBuffer)
	if err != nil {
		return nil, explain(err)
	}
	table, err := conntrack.OpenTable()
	if err != nil {
		dumper.Close()
		return nil, explain(err)
	}
	return &kernel{Dumper: dumper, Table: table}, nil
}

// Close closes what was opened.
func (k *kernel) Close() {
	if k.sockets != nil {
		k.sockets.Close()
	}
	if k.challenges != nil {
		k.challenges.Close()
	}
	if k.resets != nil {
		k.resets.Close()
	}
	k.Dumper.Close()
	k.Table.Close()
}

// explain tells what a person can do about an error of the kernel, unless the error tells that already: a feature that
// is missing can look like a file that is (ENOENT).
func explain(err error) error {
	var known *failure
	switch {
	case errors.As(err, &known) && known.hint != "":
		return err
	case errors.Is(err, rules.ErrPermission), errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return hint(err, "curfew needs CAP_NET_ADMIN and CAP_NET_RAW: run it as root, for example with sudo")
	case errors.Is(err, unix.EMSGSIZE):
		return hint(err, "so many rules don't fit into a netlink message: raise the sysctl net.core.wmem_max, or run curfew as the host's root")
	case errors.Is(err, sockdiag.ErrUnsupported):
		return hint(err, "this kernel can't end sockets: it needs CONFIG_INET_DIAG_DESTROY (Linux 4.9)")
	case errors.Is(err, rules.ErrFormat):
		return hint(err, "take it away with that version's `curfew remove`, or with: nft delete table inet curfew")
	case errors.Is(err, rules.ErrDamaged):
		return hint(err, "take it away with `curfew remove`, and install again with `curfew apply`")
	case errors.Is(err, rules.ErrForeign):
		return hint(err, "if nothing needs that table any more: nft delete table inet curfew")
	case errors.Is(err, fs.ErrNotExist):
		return hint(err, "the kernel needs CONFIG_NF_CONNTRACK with CONFIG_NF_CONNTRACK_TIMESTAMP; `curfew selftest` shows what it has")
	}
	return err
}

// readTable reads the table. Every error but ErrNotInstalled is explained.
func readTable() (*rules.Installed, error) {
	in, err := rules.Read()
	switch {
	case err == nil, errors.Is(err, rules.ErrNotInstalled):
		return in, err
	case errors.Is(err, rules.ErrForeign), errors.Is(err, rules.ErrDamaged), errors.Is(err, rules.ErrFormat), errors.Is(err, rules.ErrPermission):
		return nil, explain(err)
	}
	return nil, missing(err, tableCapabilities())
}

// missing explains a refused table by the first capability that the kernel lacks.
func missing(err error, list []capability) error {
	for _, c := range list {
		if probe := c.probe(); probe != nil && !errors.Is(probe, rules.ErrPermission) {
			return hint(fmt.Errorf("%w: this kernel has no %s", err, c.name),
				"it needs %s (Linux %s or newer); `curfew selftest` shows all that is needed", c.config, c.since)
		}
	}
	return err
}

// newReaper makes a reaper for an installed table.
func (k *kernel) newReaper(env *Env, in *rules.Installed, log *slog.Logger) (*reaper.Reaper, error) {
	judge, err := newJudge(env.Clock, in)
	if err != nil {
		return nil, err
	}
	r := &reaper.Reaper{
		Policies: ctpolicy.NewMatcher(in.Policies, k.local.has), Judge: judge,
		Flows: k, Sockets: k.sockets, Challenger: k.challenges, Table: ourTable{k.resets, env.started},
		Clock: env.Clock, Local: k.local.has, Log: log, BootID: ctpolicy.BootID(),
		Adopting: env.Clock.Now().Boot.Add(in.Adopt),
	}
	r.Init()
	return r, nil
}

// newJudge reads back what earlier processes noted in the table. It has not looked at the clock yet.
func newJudge(clock ctpolicy.Clock, in *rules.Installed) (*ctpolicy.Judge, error) {
	defaults, err := conntrack.NamespaceTimeouts()
	if err != nil {
		return nil, explain(err)
	}
	readings := clockNotes(in.Notes)
	if len(readings) == 0 {
		readings = append(readings, clock.Now())
	}
	return &ctpolicy.Judge{
		Timeline: ctpolicy.NewTimeline(readings...), Since: readings[0].Boot,
		Defaults: defaults, Installed: in.Timeouts,
	}, nil
}

// clockNotes are the readings of this boot, oldest first.
func clockNotes(notes []string) (readings []ctpolicy.Reading) {
	id := ctpolicy.BootID()
	for _, note := range notes {
		if r, ok := ctpolicy.ParseNote(note, id); ok {
			readings = append(readings, r)
		}
	}
	return readings
}

// ourTable is the installed table as the reaper sees it.
type ourTable struct {
	*rules.Resets
	since time.Time // when this process started to reap
}

func (t ourTable) Beat() error                        { return rules.Beat(os.Getpid(), t.since) }
func (ourTable) Note(text string) error               { return rules.AddNote(text) }
func (ourTable) Hold(tuples ...conntrack.Tuple) error { return rules.Hold(tuples...) }
