package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"curfew/internal/netnstest"
)

// ageTolerance is how far an age or a time left may be off.
const ageTolerance = 200 * time.Millisecond

// statusJSON is what `status --json` promises.
type statusJSON struct {
	Reaper struct {
		Alive bool
		PID   int
		Since string
		Left  float64
	}
	Register struct {
		Size           uint32
		Flows4, Flows6 int
	}
	Policies []struct {
		Name                        string
		Ports                       string
		MaxAge                      float64 `json:"max_age"`
		Idle                        float64
		Limits                      []string
		Mode                        string
		Direction, From, To, Except string
		Open                        int
		Counters                    map[string]struct{ Packets, Bytes uint64 }
	}
	Connections []statusConnection
	Adopt       float64
	Stray       struct{ Packets, Bytes uint64 }
}

type statusConnection struct {
	Policy, Client, Server string
	Age, Left              float64
	Limit, State           string
	Pinned                 bool
}

func readStatus(t *testing.T, h *netnstest.Host) *statusJSON {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(succeed(t, h, "status", "--json")))
	decoder.DisallowUnknownFields()
	s := &statusJSON{}
	if err := decoder.Decode(s); err != nil {
		t.Fatalf("status --json: %v", err)
	}
	return s
}

// of is a pair's line.
func (s *statusJSON) of(t *testing.T, p *pair) *statusConnection {
	t.Helper()
	i := slices.IndexFunc(s.Connections, func(c statusConnection) bool {
		return c.Client == p.client.LocalAddr().String() && c.Server == p.client.RemoteAddr().String()
	})
	if i < 0 {
		t.Fatalf("status --json does not have %s: %+v", p.name, s.Connections)
	}
	return &s.Connections[i]
}

// mustBeNear compares seconds.
func mustBeNear(t *testing.T, what string, got float64, want time.Duration) {
	t.Helper()
	if math.Abs(got-want.Seconds()) > ageTolerance.Seconds() {
		t.Errorf("%s is %.3f s, want %.3f", what, got, want.Seconds())
	}
}

// TestStatus asks for the status while nothing is installed, with a reaper, after it was killed, and after it was
// stopped.
func TestStatus(t *testing.T) {
	t.Parallel()
	const maxAge, idle = 6 * time.Second, 20 * time.Second
	top := topologies(t)["both here"](t)
	top.name = "both here"
	for _, args := range [][]string{{"status"}, {"status", "--json"}} {
		r := curfew(t, top.curfew, args...)
		if r.code != 3 || r.stdout != "" || r.stderr != "curfew: curfew is not installed here\nhint: curfew apply installs limits\n" {
			t.Errorf("%s where nothing is installed: %+v", strings.Join(args, " "), r)
		}
	}
	web, db := top.listenOn(t, 8081), top.listenOn(t, 8082)
	tracking(t, top.curfew, "1")
	older := append(web.open(t, "silent"), web.openBusy(t, "busy")...)
	reaper := start(t, top.curfew, "--name", "web", "--port", "8081,8090-8099", "--max-age", maxAge.String(),
		"--name", "db", "--port", "8082", "--max-age", "1h", "--idle", idle.String())
	sleepUntil(time.Now().Add(time.Second))
	younger := web.openBusy(t, "younger")
	idling := db.open(t, "silent")
	talking := db.openBusy(t, "busy")
	closing := db.open(t, "half-closed")
	for _, p := range closing {
		p.client.AllowHalfClose()
		p.server.AllowHalfClose()
		if err := p.client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	top.listenOn(t, 9000).open(t, "not covered")
	sleepUntil(younger[0].born.to.Add(time.Second))

	now := time.Now()
	s := readStatus(t, top.curfew)
	if !s.Reaper.Alive || s.Reaper.PID != reaper.cmd.Process.Pid || s.Reaper.Left < 5 || s.Reaper.Left > 10 {
		t.Errorf("reaper is %+v, want pid %d", s.Reaper, reaper.cmd.Process.Pid)
	}
	if len(s.Policies) != 2 || len(s.Connections) != len(older)+len(younger)+len(idling)+len(talking)+len(closing) {
		t.Fatalf("%d policies and %d connections: %+v", len(s.Policies), len(s.Connections), s)
	}
	if p := s.Policies[0]; p.Name != "web" || p.Ports != "8081,8090-8099" || p.MaxAge != maxAge.Seconds() || p.Idle != 0 || p.Open != 6 || len(p.Counters) != 3 {
		t.Errorf("first policy is %+v", p)
	}
	if p := s.Policies[1]; p.Name != "db" || p.Ports != "8082" || p.MaxAge != 3600 || p.Idle != idle.Seconds() || p.Open != 6 {
		t.Errorf("second policy is %+v", p)
	}
	for _, p := range slices.Concat(older, younger) {
		c := s.of(t, p)
		mustBeNear(t, "age of "+p.name, c.Age, now.Sub(p.born.to))
		mustBeNear(t, "time left of "+p.name, c.Left, maxAge-now.Sub(p.born.to))
		if c.Policy != "web" || c.Limit != "max_age" || c.State != "ESTABLISHED" || c.Pinned {
			t.Errorf("%s: %+v", p.name, c)
		}
	}
	for _, p := range slices.Concat(idling, talking, closing) {
		c := s.of(t, p)
		mustBeNear(t, "age of "+p.name, c.Age, now.Sub(p.born.to))
		// Of an idle limit whole seconds are known.
		want := idle
		if !slices.Contains(talking, p) {
			want -= now.Sub(p.born.to)
		}
		if c.Left < want.Seconds()-1-ageTolerance.Seconds() || c.Left > want.Seconds()+ageTolerance.Seconds() {
			t.Errorf("%s: %.3f s left, want up to 1 s less than %s", p.name, c.Left, want)
		}
		if c.Policy != "db" || c.Limit != "idle" || c.Pinned || (c.State == "CLOSE_WAIT") != slices.Contains(closing, p) {
			t.Errorf("%s: %+v", p.name, c)
		}
	}
	if !slices.IsSortedFunc(s.Connections, func(a, b statusConnection) int { return int(math.Copysign(1, a.Left-b.Left)) }) {
		t.Errorf("connections are not sorted by the time left: %+v", s.Connections)
	}
	mustShowText(t, top.curfew, reaper, older[0])

	eventually(t, "the older ones to be pinned", func() bool { return len(entries(t, top.curfew, fixed, 8081, 8081)) == len(older) })
	now = time.Now()
	s = readStatus(t, top.curfew)
	for _, p := range older {
		c := s.of(t, p)
		mustBeNear(t, "age of pinned "+p.name, c.Age, now.Sub(p.born.to))
		mustBeNear(t, "time left of pinned "+p.name, c.Left, maxAge-now.Sub(p.born.to))
		if !c.Pinned {
			t.Errorf("%s is not shown as pinned: %+v", p.name, c)
		}
	}
	if slices.ContainsFunc(younger, func(p *pair) bool { return s.of(t, p).Pinned }) {
		t.Errorf("a younger connection is shown as pinned: %+v", s.Connections)
	}

	// Without a reaper the rule ends those that talk, and counts.
	reaper.signal(syscall.SIGKILL)
	mustBeDead := func(when string) {
		t.Helper()
		if s := readStatus(t, top.curfew); s.Reaper.Alive {
			t.Errorf("reaper %s: %+v", when, s.Reaper)
		}
		if text := succeed(t, top.curfew, "status"); !strings.HasPrefix(text, "reaper: none since 20") {
			t.Errorf("status %s:\n%s", when, text)
		}
	}
	mustBeDead("after SIGKILL")
	for _, p := range older[2:] {
		if err := p.client.WaitEnd(time.Until(p.born.to.Add(maxAge)) + patience); err != nil {
			t.Error(err)
		}
	}
	s = readStatus(t, top.curfew)
	if resets := s.Policies[0].Counters["reset"]; resets.Packets == 0 || resets.Bytes == 0 {
		t.Errorf("counters after resets: %+v", s.Policies[0].Counters)
	}
	if s.Policies[0].Open > 4 {
		t.Errorf("%d connections are shown as open although two were reset", s.Policies[0].Open)
	}
	reaper = start(t, top.curfew, "--name", "web", "--port", "8081,8090-8099", "--max-age", maxAge.String(),
		"--name", "db", "--port", "8082", "--max-age", "1h", "--idle", idle.String())
	if s := readStatus(t, top.curfew); s.Reaper.PID != reaper.cmd.Process.Pid {
		t.Errorf("reaper is %+v, want pid %d", s.Reaper, reaper.cmd.Process.Pid)
	}
	reaper.stop()
	mustBeDead("after SIGTERM")
}

// mustShowText looks for the same facts in what a person reads.
func mustShowText(t *testing.T, h *netnstest.Host, reaper *process, one *pair) {
	t.Helper()
	text := succeed(t, h, "status")
	lines := strings.Split(text, "\n")
	if want := fmt.Sprintf("reaper: running (pid %d)", reaper.cmd.Process.Pid); !strings.HasPrefix(lines[0], want+" since 20") {
		t.Errorf("status starts with %q, want %q", lines[0], want)
	}
	for _, want := range [][]string{
		{"POLICY", "PORTS", "LIMITS", "COVERS", "OPEN", "RESET", "FALLBACK", "REFUSED", "REUSED"},
		{"web", "8081,8090-8099", "max_age 6s", "any", "6", "0", "0", "0", "0"},
		{"db", "8082", "max_age 1h, idle 20s", "any", "6", "0", "0", "0", "0"},
		{"CLIENT", "SERVER", "POLICY", "AGE", "LEFT", "LIMIT", "STATE", "PINNED"},
	} {
		// The columns' widths are free.
		if !slices.ContainsFunc(lines, func(line string) bool { return slices.Equal(columns(line), want) }) {
			t.Errorf("status has no line %q:\n%s", want, text)
		}
	}
	client, server := one.client.LocalAddr().String(), one.client.RemoteAddr().String()
	i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, client+" ") })
	if i < 0 {
		t.Fatalf("status has no line for %s:\n%s", client, text)
	}
	fields := columns(lines[i])
	if len(fields) != 8 || fields[1] != server || fields[2] != "web" || fields[5] != "max_age" || fields[6] != "ESTABLISHED" || fields[7] != "no" {
		t.Errorf("status has %q for %s", fields, client)
		return
	}
	for i, want := range map[int]time.Duration{3: time.Since(one.born.to), 4: 6*time.Second - time.Since(one.born.to)} {
		if d, err := time.ParseDuration(fields[i]); err != nil || (d-want).Abs() > 500*time.Millisecond+ageTolerance {
			t.Errorf("status shows %s, want about %s: %q", fields[i], want, fields)
		}
	}
}

// columns are the cells of a line of a table.
func columns(line string) []string {
	var cells []string
	for cell := range strings.SplitSeq(line, "  ") {
		if cell = strings.TrimSpace(cell); cell != "" {
			cells = append(cells, cell)
		}
	}
	return cells
}
