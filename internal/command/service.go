package command

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper"
	"curfew/rules"
)

// A service is one `curfew run`: it owns the heartbeat, reaps, and keeps the table as it was last installed.
type service struct {
	env    *Env
	log    *slog.Logger
	k      *kernel
	o      *options
	load   func() (*options, error) // reads the options again
	in     *rules.Installed         // what was last installed
	reaper *reaper.Reaper

	changes   chan rules.Change    // of the table, by anybody; the last one counts
	disturbed chan struct{}        // entries of open flows have gone
	entries   *conntrack.Destroyed // tells so
	repairs   repairs
	behind    bool // a repair was put off
}

// run installs, and then reaps until the context ends.
func (s *service) run(ctx context.Context) error {
	table, err := rules.OpenWatch()
	if err != nil {
		return explain(err)
	}
	defer table.Close()
	defer s.deafen()
	if err := s.begin(ctx); err != nil {
		return err
	}
	go s.forwardChanges(ctx, table)
	go tellRefused(ctx, s.log)
	for {
		switch s.reapUntil(ctx) {
		case eventStop:
			s.log.Info("stopped; the rules stay until `curfew remove`")
			return nil
		case eventReload:
			s.reload(ctx)
		case eventChange:
			s.check(ctx)
		}
	}
}

// begin installs, adopts what is open, and says so.
func (s *service) begin(ctx context.Context) error {
	lapse := lapsed()
	err := s.install(ctx, s.o)
	if err != nil {
		return err
	}
	if s.reaper, err = s.k.newReaper(s.env, s.in, s.log); err != nil {
		return err
	}
	adopted, err := s.reaper.Adopt()
	if err != nil {
		// Sweeps age what has no entry by its socket: late is better than not at all.
		s.log.Error("adopt", "error", err)
	}
	if s.o.reset {
		if err := s.reaper.EndAll(); err != nil {
			return explain(err)
		}
	}
	if lapse > 0 {
		s.log.Warn("no reaper was here: the rules alone have enforced the limits", "for", lapse.Round(time.Second))
	}
	s.reaper.Disturbed = s.disturbed
	s.listen()
	s.say()
	s.log.Info("running", "pid", os.Getpid(), "adopted", adopted, "sweep", s.reaper.Interval())
	return nil
}

// lapsed is for how long the rules have been alone; 0 when they never were.
func lapsed() time.Duration {
	in, err := rules.Read()
	if err != nil || !in.Reaper.Seen || in.Reaper.Running() {
		return 0
	}
	return in.Reaper.Quiet
}

// An event is why the reaper pauses.
type event int

const (
	eventStop event = iota
	eventReload
	eventChange // of the table, or it is time for a repair that was put off
)

// reapUntil reaps until something else is to be done. What comes while that is done waits in its channel.
func (s *service) reapUntil(ctx context.Context) event {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var later <-chan time.Time
	if s.behind {
		later = time.After(max(time.Second, s.repairs.wait(time.Now())))
	}
	next := make(chan event, 1)
	go func() {
		defer cancel()
		select {
		case <-running.Done():
			next <- eventStop
		case <-s.env.Reload:
			next <- eventReload
		case s.repairs.who = <-s.changes:
			next <- eventChange
		case <-later:
			next <- eventChange
		}
	}()
	s.reaper.Run(running)
	return <-next
}

// forwardChanges passes on what happens to the table.
func (s *service) forwardChanges(ctx context.Context, table *rules.Watch) {
	for {
		c, err := table.Next()
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, os.ErrClosed) {
				s.log.Error("changes of the rules are not seen any more", "error", err)
			}
			return
		}
		if c.PID != os.Getpid() || c.Lost {
			offer(s.changes, c)
		}
	}
}

// offer puts the newest value into a channel of one.
func offer[T any](c chan T, value T) {
	for {
		select {
		case c <- value:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// reload installs what the file or the flags say now. When that is bad the old limits stay in force.
func (s *service) reload(ctx context.Context) {
	o, err := s.load()
	if err == nil {
		err = s.install(ctx, o)
	}
	lines := config.Errors{}
	if errors.As(err, &lines) {
		for _, line := range lines {
			s.log.Error("not reloaded: the old limits stay in force", "error", line)
		}
		return
	}
	if err != nil {
		s.log.Error("not reloaded: the old limits stay in force", "error", err)
		return
	}
	s.log.Info("reloaded")
	s.take()
}

func (s *service) install(ctx context.Context, o *options) error {
	in, err := install(ctx, s.env, s.k, o, s.in, true)
	if err != nil {
		return err
	}
	s.o, s.in = o, in
	return nil
}

// take makes the reaper obey what is installed now.
func (s *service) take() {
	judge, err := newJudge(s.env.Clock, s.in)
	if err != nil {
		s.log.Error("obey the new limits", "error", err)
		return
	}
	if err := s.k.useMark(s.in.Mark); err != nil {
		s.log.Error("challenges keep their old mark: connections may end late", "error", err)
	}
	s.reaper.Challenger = s.k.challenges
	s.reaper.Use(ctpolicy.NewMatcher(s.in.Policies, s.k.local.has), judge)
	s.reaper.Adopting = s.env.Clock.Now().Boot.Add(s.in.Adopt)
	s.listen()
	s.say()
}

// listen has the reaper told when entries of open flows go away: somebody deletes them. Without it sweeps find out.
func (s *service) listen() {
	s.deafen()
	var ports []conntrack.PortRange
	for _, r := range s.reaper.Policies.Ports() {
		ports = append(ports, conntrack.PortRange(r))
	}
	entries, err := conntrack.OpenDestroyed(ports)
	if err != nil {
		s.log.Warn("listen for entries that go away", "error", err)
		return
	}
	s.entries = entries
	go func() {
		for entries.Next() == nil {
			offer(s.disturbed, struct{}{})
		}
	}()
}

func (s *service) deafen() {
	if s.entries != nil {
		s.entries.Close()
	}
}

// say logs what is limited.
func (s *service) say() {
	for i := range s.in.Policies {
		p := &s.in.Policies[i]
		s.log.Info("limiting", "policy", p.Name, "port", ctpolicy.FormatPorts(p.Ports), "limits", p.String()+scopeText(p))
	}
	if n, err := s.reaper.PinnedEarly(); err == nil && n > 0 {
		s.log.Info("connections are pinned already and keep their earlier limit", "connections", n)
	}
}
