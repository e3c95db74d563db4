package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
)

// format is the first note. It says that the table is ours, and what wrote it.
const format = formatPrefix + "3"

const formatPrefix = "curfew table, format "

// Installed is what the table holds.
type Installed struct {
	Policies []ctpolicy.Policy
	// Counters by policy and by what they count.
	Counters map[string]map[string]Counter
	// Timeouts are the seconds that ct timeout objects, also those of earlier configurations, give to open flows.
	Timeouts map[string][]uint32
	// Notes are what Config.Notes said, oldest first.
	Notes        []string
	RegisterSize uint32
	Mark         uint32
	Reaper       Reaper
	// Adopt is how long forwarded flows that conntrack does not know are still picked up.
	Adopt time.Duration
	// Stray counts packets of flows that conntrack did not know.
	Stray Counter

	state   string // the digest of the table that curfew left
	chains  []string
	sets    []string
	objects []object
}

// Same tells whether these are the installed policies, in their order.
func (in *Installed) Same(policies []ctpolicy.Policy) bool {
	return len(policies) == len(in.Policies) && (len(policies) == 0 || reflect.DeepEqual(policies, in.Policies))
}

// A Counter counts packets and their bytes.
type Counter struct{ Packets, Bytes uint64 }

type object struct {
	name string
	kind nftables.ObjType
}

// of tells whether the object belongs to the policy. Policies' names may hold '-': "a" owns "a-reset" but not
// "a-b-reset".
func (o object) of(policy string) bool {
	rest, ok := strings.CutPrefix(o.name, policy+"-")
	if !ok {
		return false
	}
	if o.kind == nftables.ObjTypeCounter {
		return slices.Contains(countNames, rest)
	}
	return strings.Count(rest, "-") == 1
}

// Read reads the table: ErrNotInstalled when there is none, ErrForeign when it is not ours, ErrDamaged when it was, ErrFormat
// when it is not of this version.
func Read() (*Installed, error) {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	notes, err := readNotes(conn)
	if err != nil {
		return nil, err
	}
	in := &Installed{Notes: notes, Counters: map[string]map[string]Counter{}, Timeouts: map[string][]uint32{}}
	for _, read := range []func(*nftables.Conn) error{in.readChains, in.readSets, in.readPolicies, in.readObjects, in.readAlive, in.readAdopt, in.readMark, in.readState} {
		if err := read(conn); err != nil {
			return nil, fmt.Errorf("read table inet curfew: %w", err)
		}
	}
	return in, nil
}

// readNotes finds out whether there is a table, and whether it is ours.
func readNotes(conn *nftables.Conn) ([]string, error) {
	if _, err := conn.ListTableOfFamily(TableName, nftables.TableFamilyINet); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, ErrNotInstalled
		}
		return nil, fmt.Errorf("read table inet curfew: %w", explainPermission(err))
	}
	notes, err := comments(conn, chainAbout)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("read table inet curfew: %w", err)
	}
	switch {
	case len(notes) == 0 && madeByUs(conn):
		return nil, ErrDamaged
	case len(notes) == 0 || !strings.HasPrefix(notes[0], formatPrefix):
		return nil, ErrForeign
	case notes[0] != format:
		return nil, ErrFormat
	}
	return notes[1:], nil
}

// madeByUs knows our table also without its rules, which `nft flush table` takes away, by the sets that every one has.
func madeByUs(conn *nftables.Conn) bool {
	sets, err := conn.GetSets(table)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(fixedSets(0), func(ours *nftables.Set) bool {
		return !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == ours.Name })
	})
}

func (in *Installed) readChains(conn *nftables.Conn) error {
	all, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	for _, c := range all {
		if c.Table.Name == TableName {
			in.chains = append(in.chains, c.Name)
		}
	}
	return err
}

func (in *Installed) readSets(conn *nftables.Conn) error {
	sets, err := conn.GetSets(table)
	for _, s := range sets {
		in.sets = append(in.sets, s.Name)
		if s.Name == flowsSet(&families[0]) {
			in.RegisterSize = s.Size
		}
	}
	return err
}

// readPolicies reads what policiesChain wrote.
func (in *Installed) readPolicies(conn *nftables.Conn) error {
	lines, err := comments(conn, chainPolicies)
	if err != nil {
		return err
	}
	if in.Policies, err = ctpolicy.ParseLines(lines); err != nil {
		return fmt.Errorf("chain %s: %w: install again with `curfew apply`", chainPolicies, err)
	}
	return nil
}

func (in *Installed) readObjects(conn *nftables.Conn) error {
	all, err := conn.GetNamedObjects(table)
	if err != nil {
		return err
	}
	for _, o := range all {
		named, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		in.objects = append(in.objects, object{named.Name, named.Type})
		if stray, ok := named.Obj.(*expr.Counter); ok && named.Name == counterStray {
			in.Stray = Counter{stray.Packets, stray.Bytes}
		}
		for _, p := range in.Policies {
			if (object{named.Name, named.Type}).of(p.Name) {
				in.readObject(p.Name, named)
			}
		}
	}
	return nil
}

func (in *Installed) readObject(policy string, o *nftables.NamedObj) {
	rest := strings.TrimPrefix(o.Name, policy+"-")
	switch value := o.Obj.(type) {
	case *expr.Counter:
		if in.Counters[policy] == nil {
			in.Counters[policy] = map[string]Counter{}
		}
		in.Counters[policy][rest] = Counter{value.Packets, value.Bytes}
	case *expr.CtTimeout:
		// The library decodes every object into one shared map, so the name is what can be trusted.
		var seconds uint32
		if _, err := fmt.Sscanf(rest, "%ds-", &seconds); err == nil {
			in.Timeouts[policy] = append(in.Timeouts[policy], seconds)
		}
	}
}

// comments are the comments of a chain's rules; rules without one are left out.
func comments(conn *nftables.Conn, chain string) ([]string, error) {
	rules, err := conn.GetRules(table, &nftables.Chain{Name: chain, Table: table})
	if err != nil {
		return nil, fmt.Errorf("read chain %s: %w", chain, err)
	}
	var texts []string
	for _, r := range rules {
		if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok {
			texts = append(texts, text)
		}
	}
	return texts, nil
}

// readMark finds the mark that the probe chain compares with.
func (in *Installed) readMark(conn *nftables.Conn) error {
	rules, err := conn.GetRules(table, &nftables.Chain{Name: chainProbe, Table: table})
	if err != nil {
		return fmt.Errorf("read chain %s: %w", chainProbe, err)
	}
	for _, r := range rules {
		for _, word := range r.Exprs {
			if cmp, ok := word.(*expr.Cmp); ok && len(cmp.Data) == 4 {
				in.Mark = binary.NativeEndian.Uint32(cmp.Data)
			}
		}
	}
	return nil
}

func noteRule(note string) *nftables.Rule {
	return &nftables.Rule{
		Table: table, Chain: &nftables.Chain{Name: chainAbout, Table: table},
		Exprs: leave().exprs, UserData: comment(note),
	}
}

// maxComment is what nft takes as a comment, in bytes, with some to spare.
const maxComment = 120

// AddNote adds a note to an installed table. A note has at most 120 bytes.
func AddNote(note string) error {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	conn.AddRule(noteRule(note))
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("keep a note in table inet curfew: %w", err)
	}
	return nil
}
