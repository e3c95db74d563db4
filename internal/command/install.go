package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/internal/nslock"
	"curfew/rules"
)

// timestampNote says what `remove` has to put back.
const timestampNote = "nf_conntrack_timestamp was "

// lockPatience is how long another curfew may take to change the table.
const lockPatience = 10 * time.Second

// locked calls fn while no other curfew changes the table. Whoever keeps the lock for long does not stop us for good: anybody
// in the namespace may take it.
func locked(ctx context.Context, env *Env, fn func() error) error {
	lock, err := nslock.Take(ctx, lockPatience)
	switch {
	case err == nil:
		defer lock.Close()
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		fmt.Fprintf(env.Stderr, "curfew: warning: %v; going on without it\n", err)
	}
	return fn()
}

// An owner is the process that reaps after it has installed.
type owner bool

// install puts the table and the sysctl in place. Unless a reaper is there, nothing is ended that was open before until the
// heartbeat of the table lapses. When the table was lost, its notes come from what was installed before it, if that is
// known. An owner refuses to work beside another one, and takes the heartbeat.
func install(ctx context.Context, env *Env, k *kernel, o *options, before *rules.Installed, own owner) (in *rules.Installed, err error) {
	err = locked(ctx, env, func() error {
		in, err = installLocked(env, k, o, before, own)
		return err
	})
	return in, err
}

func installLocked(env *Env, k *kernel, o *options, before *rules.Installed, own owner) (*rules.Installed, error) {
	old, err := readTable()
	if err != nil && !errors.Is(err, rules.ErrNotInstalled) {
		return nil, err
	}
	reaped := old != nil && old.Reaper.Running() && old.Reaper.PID != os.Getpid()
	if reaped && (bool(own) || old.Reaper.PID == 0) {
		return nil, busy(old.Reaper)
	}
	config := rules.Config{Policies: o.policies, RegisterSize: o.registerSize, Mark: o.mark, Adopting: !reaped, Adopt: o.adopt}
	if config.Defaults, err = loadConntrack(); err != nil {
		return nil, err
	}
	warn(env, o.mark)
	if config.Notes, err = newNotes(env, old, before); err != nil {
		return nil, explain(err)
	}
	if err := rules.Apply(config); err != nil {
		if errors.Is(err, rules.ErrRegisterSize) {
			return nil, usage(err)
		}
		return nil, explain(missing(err, tableCapabilities()))
	}
	if err := k.complete(env, old, o, own); err != nil {
		if old == nil {
			err = errors.Join(err, rules.Remove()) // it must not wake with the labels of an earlier table
		}
		return nil, explain(err)
	}
	in, err := rules.Read()
	return in, explain(err)
}

// complete does what belongs to a table that was just installed, and sleeps still.
func (k *kernel) complete(env *Env, old *rules.Installed, o *options, own owner) error {
	if own {
		if err := rules.Beat(os.Getpid(), env.started); err != nil {
			return err
		}
	}
	if err := k.updateLabels(old, o.policies); err != nil {
		return err
	}
	return conntrack.SetTimestamps(true)
}

// busy says who reaps here already.
func busy(r rules.Reaper) error {
	if r.PID == 0 {
		return hint(errors.New("another curfew is installing its rules right now"), "try again in %d seconds", int(rules.Heartbeat.Seconds()))
	}
	return hint(fmt.Errorf("a reaper is running already (pid %d)", r.PID),
		"stop it first: kill %d, or systemctl stop curfew if that started it", r.PID)
}

// loadConntrack makes sure that conntrack is loaded, and answers its timeouts. Its sysctls exist only once it is.
func loadConntrack() (conntrack.Timeouts, error) {
	timeouts, err := conntrack.NamespaceTimeouts()
	if !errors.Is(err, fs.ErrNotExist) {
		return timeouts, explain(err)
	}
	for _, c := range tableCapabilities() {
		if err := c.probe(); err != nil {
			return timeouts, explain(missing(err, []capability{c}))
		}
	}
	timeouts, err = conntrack.NamespaceTimeouts()
	return timeouts, explain(err)
}

// newNotes are what the table must remember and does not yet.
func newNotes(env *Env, old, before *rules.Installed) (notes []string, err error) {
	var known []string
	switch {
	case old != nil:
		known = old.Notes
	case before != nil:
		known, notes = before.Notes, before.Notes
	}
	if oldTimestamps(known) == "" {
		on, err := conntrack.Timestamps()
		if err != nil {
			return nil, err
		}
		notes = append(notes, fmt.Sprintf("%s%d", timestampNote, map[bool]int{true: 1}[on]))
	}
	readings, reading := clockNotes(known), env.Clock.Now()
	if len(readings) == 0 || ctpolicy.NewTimeline(readings...).Observe(reading) {
		notes = append(notes, reading.Note(ctpolicy.BootID()))
	}
	return notes, nil
}

// oldTimestamps is the sysctl's value before curfew came, or "".
func oldTimestamps(notes []string) string {
	for _, note := range notes {
		if value, ok := strings.CutPrefix(note, timestampNote); ok {
			return value
		}
	}
	return ""
}

// ourLabels are all label bits that we use.
var ourLabels = labelsFrom(ctpolicy.FirstLabel)

// givenLabels are those that follow from a flow and the policies.
var givenLabels = ourLabels.AndNot(conntrack.Bits(ctpolicy.LabelReported, ctpolicy.LabelRetried, ctpolicy.LabelTracked, ctpolicy.LabelRegistered))

func labelsFrom(first int) (label conntrack.Label) {
	for bit := first; bit <= ctpolicy.LabelRegistered; bit++ {
		label.Set(bit)
	}
	return label
}

// clearLabels is for a table that is not there any more.
func (k *kernel) clearLabels() error {
	return k.relabel(func(*conntrack.Entry) conntrack.Label { return conntrack.Label{} })
}

// updateLabels is for a table that is there now, and asleep. Flows that are covered get the labels that new ones get. After a
// change every flow is registered anew, with the limit that holds now, and those that another policy covers now don't have
// its ct timeout object. Labels of a table that is gone would make a flow look overdue.
func (k *kernel) updateLabels(old *rules.Installed, policies []ctpolicy.Policy) error {
	var was []ctpolicy.Policy
	if old != nil {
		was = old.Policies
	}
	before, now := ctpolicy.NewMatcher(was, k.local.has), ctpolicy.NewMatcher(policies, k.local.has)
	changed := old == nil || !old.Same(policies)
	return k.relabel(func(e *conntrack.Entry) conntrack.Label {
		label := e.Label.AndNot(givenLabels).Or(now.Labels(e))
		if changed {
			label = label.AndNot(conntrack.Bits(ctpolicy.LabelRegistered, ctpolicy.LabelReported))
			if p, q := before.Flow(e), now.Flow(e); p == nil || q == nil || p.Name != q.Name || !q.Enforced() || !q.Ends() {
				label.Clear(ctpolicy.LabelTracked)
			}
		}
		if now.Flow(e) == nil {
			return conntrack.Label{}
		}
		return label
	})
}

// relabel gives all flows the bits of ours that wanted answers.
func (k *kernel) relabel(wanted func(*conntrack.Entry) conntrack.Label) error {
	var other []conntrack.Entry
	err := k.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		if label := wanted(e); label.And(ourLabels) != e.Label.And(ourLabels) {
			e.Label = label
			other = append(other, *e)
		}
		return nil
	})
	for i := range other {
		err = errors.Join(err, k.Relabel(&other[i], other[i].Label, ourLabels))
	}
	return err
}
