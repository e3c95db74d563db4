package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/rules"
)

func statusCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show limits, connections, counters and the reaper",
		Description: `Shows what is installed and each covered connection with its age and the time left. Exits with 3 when nothing is
installed.

   curfew status
   curfew status --json`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON; times are in seconds"}},
		Action: func(c *cli.Context) error {
			s, err := readStatus(env)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return s.printJSON(env.Stdout)
			}
			return s.print(env.Stdout)
		},
	}
}

// A status is what `status` shows. Times are in seconds.
type status struct {
	Reaper      reaperStatus   `json:"reaper"`
	Policies    []policyStatus `json:"policies"`
	Connections []connStatus   `json:"connections"`
	// Adopt is the time for which forwarded connections that conntrack does not know are still picked up.
	Adopt float64 `json:"adopt,omitempty"`
	// Stray counts the packets of those that came later.
	Stray    rules.Counter  `json:"stray"`
	Register registerStatus `json:"register"`
}

type reaperStatus struct {
	Alive bool `json:"alive"`
	PID   int  `json:"pid,omitempty"`
	// Since is when it started, or when the last one went; empty when nobody knows.
	Since string `json:"since,omitempty"`
	// Left is the time until the rules take over if it does not beat again.
	Left float64 `json:"left,omitempty"`
}

// A registerStatus tells how full the fallback's register is. Flows that don't fit are not limited without a reaper.
type registerStatus struct {
	Size   uint32 `json:"size"` // for each of IPv4 and IPv6
	Flows4 int    `json:"flows4"`
	Flows6 int    `json:"flows6"`
}

type policyStatus struct {
	Name      string                   `json:"name"`
	Ports     string                   `json:"ports"`
	MaxAge    float64                  `json:"max_age,omitempty"`
	Idle      float64                  `json:"idle,omitempty"`
	Limits    []string                 `json:"limits"` // all of them, as the configuration says them
	Mode      string                   `json:"mode"`
	Direction string                   `json:"direction"`
	From      string                   `json:"from,omitempty"`
	To        string                   `json:"to,omitempty"`
	Except    string                   `json:"except,omitempty"`
	Open      int                      `json:"open"`
	Counters  map[string]rules.Counter `json:"counters"`
}

type connStatus struct {
	Policy string          `json:"policy"`
	Client string          `json:"client"`
	Server string          `json:"server"`
	Age    float64         `json:"age"`
	Left   float64         `json:"left"`
	Limit  ctpolicy.Cause  `json:"limit"`
	State  string          `json:"state"`
	Pinned bool            `json:"pinned"`
	flow   conntrack.Tuple // for sorting
}

func readStatus(env *Env) (*status, error) {
	in, err := readTable()
	if errors.Is(err, rules.ErrNotInstalled) {
		f := &failure{err: err, code: ExitNotInstalled, hint: "curfew apply installs limits"}
		return nil, f
	}
	if err != nil {
		return nil, err
	}
	k, err := openConntrack()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	judge, err := newJudge(env.Clock, in)
	if err != nil {
		return nil, err
	}
	judge.Timeline.Observe(env.Clock.Now())
	s := &status{Connections: []connStatus{}, Adopt: in.Adopt.Seconds(), Stray: in.Stray}
	s.Reaper = newReaperStatus(&in.Reaper, env.Clock)
	s.Register.Size = in.RegisterSize
	if s.Register.Flows4, s.Register.Flows6, err = rules.Fill(); err != nil {
		return nil, explain(err)
	}
	open, err := s.readConnections(env.Clock, k, judge, ctpolicy.NewMatcher(in.Policies, k.local.has))
	if err != nil {
		return nil, explain(err)
	}
	for i := range in.Policies {
		p := &in.Policies[i]
		s.Policies = append(s.Policies, policyStatus{
			p.Name, ctpolicy.FormatPorts(p.Ports), p.MaxAge.Seconds(), p.Idle.Seconds(), p.Limits(), p.Mode.String(), p.Direction.String(),
			p.From.String(), p.To.String(), p.Except.String(), open[p.Name], in.Counters[p.Name],
		})
	}
	return s, nil
}

func newReaperStatus(r *rules.Reaper, clock ctpolicy.Clock) reaperStatus {
	s := reaperStatus{Alive: r.Running(), PID: r.PID, Left: r.Left.Seconds()}
	since := r.Since
	if !s.Alive && r.Seen {
		since = time.Unix(0, clock.Now().Wall).Add(-r.Quiet)
	}
	if !since.IsZero() {
		s.Since = since.UTC().Format(time.RFC3339)
	}
	return s
}

func (s *status) readConnections(clock ctpolicy.Clock, k *kernel, judge *ctpolicy.Judge, policies *ctpolicy.Matcher) (open map[string]int, err error) {
	open = map[string]int{}
	err = k.eachCovered(policies, func(p *ctpolicy.Policy, e *conntrack.Entry) {
		open[p.Name]++
		now := clock.Now().Boot
		d := judge.Deadline(p, e, now)
		s.Connections = append(s.Connections, connStatus{
			Policy: p.Name, Client: e.Orig.Src.String(), Server: e.Orig.Dst.String(),
			Age: now.Sub(judge.Birth(e, now)).Seconds(), Left: d.At.Sub(now).Seconds(), Limit: d.Cause,
			State: conntrack.StateName(e.State), Pinned: ctpolicy.Pinned(e), flow: e.Orig,
		})
	})
	slices.SortFunc(s.Connections, func(a, b connStatus) int {
		switch {
		case a.Left < b.Left:
			return -1
		case a.Left > b.Left:
			return 1
		}
		return a.flow.Src.Compare(b.flow.Src)
	})
	return open, err
}

func (s *status) printJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(s)
}

func (s *status) print(w io.Writer) error {
	s.Reaper.print(w)
	if r := &s.Register; r.Flows4+r.Flows6 > 0 || !s.Reaper.Alive {
		fmt.Fprintf(w, "register: %d of %d IPv4 and %d of %d IPv6 connections\n", r.Flows4, r.Size, r.Flows6, r.Size)
	}
	if s.Adopt > 0 {
		fmt.Fprintf(w, "adoption: forwarded connections that conntrack does not know are picked up for another %s\n", secondsText(s.Adopt))
	}
	if s.Stray.Packets > 0 {
		fmt.Fprintf(w, "strays: %d packets of connections that conntrack did not know were answered with a reset\n", s.Stray.Packets)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nPOLICY\tPORTS\tLIMITS\tCOVERS\tOPEN\tRESET\tFALLBACK\tREFUSED\tREUSED")
	for _, p := range s.Policies {
		count := func(name string) uint64 { return p.Counters[name].Packets }
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\n", p.Name, p.Ports, p.limits(), p.covers(), p.Open,
			count(rules.CountReset), count(rules.CountFallback)+count(rules.CountReported),
			count(rules.CountMaxPerSource)+count(rules.CountNewPerSource), count(rules.CountReused))
	}
	if len(s.Connections) > 0 {
		fmt.Fprintln(table, "\nCLIENT\tSERVER\tPOLICY\tAGE\tLEFT\tLIMIT\tSTATE\tPINNED")
	}
	for _, c := range s.Connections {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Client, c.Server, c.Policy,
			secondsText(c.Age), secondsText(c.Left), c.Limit, c.State, yesNo(c.Pinned))
	}
	return table.Flush()
}

func (r *reaperStatus) print(w io.Writer) {
	since := ""
	if r.Since != "" {
		since = " since " + r.Since
	}
	switch {
	case r.Alive && r.PID > 0:
		fmt.Fprintf(w, "reaper: running (pid %d)%s\n", r.PID, since)
	case r.Alive:
		fmt.Fprintln(w, "reaper: connections are being adopted")
	default:
		fmt.Fprintf(w, "reaper: none%s; the kernel ends connections that send, idle ones wait for `curfew run` or `curfew reap`\n", since)
	}
}

// covers is what a policy covers, beside ports.
func (p *policyStatus) covers() string {
	text := p.Direction
	for _, s := range [][2]string{{"from", p.From}, {"to", p.To}, {"except", p.Except}} {
		if s[1] != "" {
			text += ", " + s[0] + " " + s[1]
		}
	}
	return text
}

// limits are those of a policy; its direction is part of what it covers.
func (p *policyStatus) limits() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(p.Limits), func(l string) bool { return strings.HasPrefix(l, "direction ") }), ", ")
}

func secondsText(seconds float64) string {
	return ctpolicy.FormatDuration(time.Duration(seconds * float64(time.Second)).Round(time.Second))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
