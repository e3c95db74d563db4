package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/rules"
)

// timestampNote says what `remove` has to put back.
const timestampNote = "nf_conntrack_timestamp was "

// install puts the table and the sysctl in place. Until the heartbeat of the table lapses, nothing is ended that was
// open before. When the table was lost, its notes come from what was installed before it, if that is known.
func install(env *Env, k *kernel, o *options, before *rules.Installed) (*rules.Installed, error) {
	old, err := readTable()
	if err != nil && !errors.Is(err, rules.ErrNotInstalled) {
		return nil, err
	}
	if old != nil && old.Reaper.Running() && old.Reaper.PID != os.Getpid() {
		return nil, busy(old.Reaper)
	}
	config := rules.Config{Policies: o.policies, RegisterSize: o.registerSize, Mark: o.mark, Adopting: true, Adopt: o.adopt}
	if config.Defaults, err = loadConntrack(); err != nil {
		return nil, err
	}
	warn(env, o.mark)
	if old == nil {
		if err := k.clearLabels(); err != nil {
			return nil, explain(err)
		}
	}
	if config.Notes, err = newNotes(env, old, before); err != nil {
		return nil, explain(err)
	}
	if err := rules.Apply(config); err != nil {
		if errors.Is(err, rules.ErrRegisterSize) {
			return nil, usage(err)
		}
		return nil, explain(missing(err, tableCapabilities()))
	}
	if err := k.updateLabels(old, o.policies); err != nil {
		return nil, explain(err)
	}
	if err := conntrack.SetTimestamps(true); err != nil {
		if old == nil {
			err = errors.Join(err, rules.Remove())
		}
		return nil, explain(err)
	}
	in, err := rules.Read()
	return in, explain(err)
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

// clearLabels is for a table that is not there (yet): a label of an earlier one would make a flow look overdue.
func (k *kernel) clearLabels() error {
	return k.relabel(func(*conntrack.Entry) conntrack.Label { return conntrack.Label{} })
}

// updateLabels is for a table that is there now. Flows that are covered get the labels that new ones get. After a
// change every flow is registered anew, with the limit that holds now, and those that
// another policy covers now don't have its ct timeout object.
func (k *kernel) updateLabels(old *rules.Installed, policies []ctpolicy.Policy) error {
	before, now := ctpolicy.NewMatcher(nil, k.local.has), ctpolicy.NewMatcher(policies, k.local.has)
	changed := old != nil && !old.Same(policies)
	if changed {
		before = ctpolicy.NewMatcher(old.Policies, k.local.has)
	}
	return k.relabel(func(e *conntrack.Entry) conntrack.Label {
		label := e.Label.AndNot(givenLabels).Or(now.Labels(e))
		if changed {
			label.Clear(ctpolicy.LabelRegistered)
			if p, q := before.Flow(e), now.Flow(e); p == nil || q == nil || p.Name != q.Name {
				label.Clear(ctpolicy.LabelTracked)
			}
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
