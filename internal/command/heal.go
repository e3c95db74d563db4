package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"curfew/rules"
)

// check looks at the table after somebody has changed it. What another curfew has installed is obeyed; anything else is put
// back.
func (s *service) check(ctx context.Context) {
	var in *rules.Installed
	var sound bool
	err := locked(ctx, s.env, func() (err error) {
		if in, err = rules.Read(); err == nil {
			sound, err = in.Sound()
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, rules.ErrForeign), errors.Is(err, rules.ErrFormat):
		s.log.Error("the rules are gone, and a table that is not this curfew's has their name; only this reaper enforces limits now",
			"error", err, "by", s.repairs.by())
	case err == nil && sound:
		s.obey(in)
	default:
		s.repair(ctx)
	}
}

// obey takes over what another curfew has installed.
func (s *service) obey(in *rules.Installed) {
	changed := !in.Same(s.in.Policies) || in.Mark != s.in.Mark
	s.in = in
	if changed {
		s.log.Info("another curfew has changed the limits", "by", s.repairs.by())
		s.take()
	}
}

// repair installs again what was installed last.
func (s *service) repair(ctx context.Context) {
	now := time.Now()
	if !s.repairs.allow(now) {
		if !s.behind {
			s.log.Error("the rules are changed again and again: the next repair waits", "by", s.repairs.by(),
				"repairs", maxRepairs, "wait", s.repairs.wait(now).Round(time.Second))
		}
		s.behind = true
		return
	}
	s.behind = false
	o := *s.o
	o.policies, o.registerSize, o.mark = s.in.Policies, s.in.RegisterSize, s.in.Mark
	err := s.install(ctx, &o)
	if err != nil && ctx.Err() == nil {
		// What is there can't be changed into what should be, for example when a chain has another hook.
		if err = rules.Remove(); err == nil || errors.Is(err, rules.ErrNotInstalled) {
			err = s.install(ctx, &o)
		}
	}
	if err != nil {
		s.log.Error("the rules were changed, and can't be put back", "by", s.repairs.by(), "error", err)
		s.behind = true
		return
	}
	s.log.Error("the rules were changed: put back", "by", s.repairs.by())
	s.take()
}

// maxRepairs is how often a minute the table is put back. More is a fight with another program.
const maxRepairs = 10

// repairs are those of the last minute.
type repairs struct {
	times []time.Time
	who   rules.Change // the last one that changed the table
}

// allow counts a repair, unless there have been too many.
func (r *repairs) allow(now time.Time) bool {
	if r.wait(now) > 0 {
		return false
	}
	r.times = append(r.times, now)
	return true
}

// wait is the time until the next repair is allowed.
func (r *repairs) wait(now time.Time) time.Duration {
	for len(r.times) > 0 && now.Sub(r.times[0]) >= time.Minute {
		r.times = r.times[1:]
	}
	if len(r.times) < maxRepairs {
		return 0
	}
	return r.times[0].Add(time.Minute).Sub(now)
}

// by names who has changed the table.
func (r *repairs) by() string {
	if r.who.Process == "" {
		return "unknown"
	}
	return fmt.Sprintf("%s (pid %d)", r.who.Process, r.who.PID)
}
