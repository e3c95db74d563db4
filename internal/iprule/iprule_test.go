package iprule

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
	"curfew/internal/nl"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

const mark = 0x63757266

func TestHolds(t *testing.T) {
	for name, tc := range map[string]struct {
		rule           rule
		ours, unmarked bool
	}{
		"no mark":              {rule{}, true, true},
		"ours":                 {rule{mark: mark, mask: 0xffffffff}, true, false},
		"another":              {rule{mark: 1, mask: 0xffffffff}, false, false},
		"masked":               {rule{mark: 0x66, mask: 0xff}, true, false},
		"masked, another":      {rule{mark: 0x67, mask: 0xff}, false, false},
		"none of a mask":       {rule{mark: 0, mask: 0xff}, false, true},
		"none of other bits":   {rule{mark: 0, mask: 0x8000}, true, true},
		"bits beyond the mask": {rule{mark: 0xff66, mask: 0xff}, true, false},
		"not ours":             {rule{mark: mark, mask: 0xffffffff, invert: true}, false, true},
		"not another":          {rule{mark: 1, mask: 0xffffffff, invert: true}, true, true},
	} {
		if ours, unmarked := tc.rule.holds(mark), tc.rule.holds(0); ours != tc.ours || unmarked != tc.unmarked {
			t.Errorf("%s: %v and %v, want %v and %v", name, ours, unmarked, tc.ours, tc.unmarked)
		}
	}
}

func markUsers(t *testing.T, h *netnstest.Host) (users []string) {
	t.Helper()
	if err := h.Do(func() (err error) { users, err = MarkUsers(mark); return err }); err != nil {
		t.Fatal(err)
	}
	return users
}

// batch gives ip its commands.
func batch(t *testing.T, h *netnstest.Host, family, commands string) {
	t.Helper()
	if out, err := h.Pipe(context.Background(), commands, "ip", family, "-batch", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestMarkUsers(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	if users := markUsers(t, h); users != nil {
		t.Errorf("in an empty namespace: %q", users)
	}
	batch(t, h, "-4", `
rule add priority 100 fwmark 0x2/0x2 lookup 7
rule add priority 101 fwmark 0x63757266 lookup 7
rule add priority 102 fwmark 0x1 lookup 7
rule add priority 103 not fwmark 0x1 lookup 7
rule add priority 104 not fwmark 0x63757266 lookup 7
rule add priority 105 from 10.0.0.0/8 lookup 7
rule add priority 106 fwmark 0/0xff from 10.0.0.0/8 lookup 7
`)
	batch(t, h, "-6", `
rule add priority 200 fwmark 0x4000/0x4000 lookup 7
rule add priority 201 fwmark 0x8000/0x8000 lookup 7
`)
	want := []string{
		"ip rule 100 (fwmark 0x2/0x2)", "ip rule 101 (fwmark 0x63757266/0xffffffff)",
		"ip rule 104 (not fwmark 0x63757266/0xffffffff)", "ip rule 106 (fwmark 0x0/0xff)",
		"ip -6 rule 200 (fwmark 0x4000/0x4000)",
	}
	if users := markUsers(t, h); !slices.Equal(users, want) {
		t.Errorf("got  %q\nwant %q", users, want)
	}
}

// More rules than one answer of the kernel has room for.
func TestManyRules(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	const count = 2000
	batch(t, h, "-4", strings.Repeat("rule add fwmark 0x2/0x2 lookup 7\n", count))
	if users := markUsers(t, h); len(users) != count {
		t.Errorf("%d rules, want %d", len(users), count)
	}
}

// A family without policy routing has no rules, and that is no error.
func TestNoPolicyRouting(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	err := h.Do(func() error {
		conn, err := nl.Dial(unix.NETLINK_ROUTE, receiveBuffer)
		if err != nil {
			return err
		}
		defer conn.Close()
		rules, err := list(conn.Dump, unix.AF_APPLETALK)
		if len(rules) > 0 {
			t.Errorf("rules %v", rules)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	for name, tc := range map[string]struct {
		errs  []error // of each dump, after one rule
		count int
		want  error
	}{
		"complete":          {[]error{nil}, 1, nil},
		"interrupted":       {[]error{nl.ErrInterrupted, nl.ErrInterrupted, nil}, 1, nil},
		"no policy routing": {[]error{&nl.Error{Errno: unix.EOPNOTSUPP}}, 0, nil},
		"refused":           {[]error{&nl.Error{Errno: unix.EPERM}, nil}, 1, unix.EPERM},
		"never complete":    {slices.Repeat([]error{nl.ErrInterrupted}, dumpAttempts), 1, nl.ErrInterrupted},
	} {
		rules, err := list(func(_ []byte, fn nl.Handler) error {
			next := tc.errs[0]
			tc.errs = tc.errs[1:]
			return errors.Join(fn(unix.RTM_NEWRULE, make([]byte, headerSize)), next)
		}, unix.AF_INET)
		if len(rules) != tc.count || !errors.Is(err, tc.want) {
			t.Errorf("%s: %d rules, %v; want %d, %v", name, len(rules), err, tc.count, tc.want)
		}
	}
}

func TestParseRefusesWhatIsCut(t *testing.T) {
	short := binary.NativeEndian.AppendUint16(nil, 6)
	short = binary.NativeEndian.AppendUint16(short, unix.FRA_FWMARK)
	short = append(short, 1, 2, 0, 0)
	for name, payload := range map[string][]byte{
		"header":    make([]byte, headerSize-1),
		"attribute": append(make([]byte, headerSize), short...),
	} {
		if _, err := parse(payload); !errors.Is(err, nl.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, headerSize))
	f.Add(append(make([]byte, headerSize), 8, 0, unix.FRA_FWMASK, 0, 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if r, err := parse(payload); err == nil && r.holds(mark) == (rule{mark: r.mark, mask: r.mask, invert: !r.invert}).holds(mark) {
			t.Errorf("%v holds inverted too", r)
		}
	})
}
