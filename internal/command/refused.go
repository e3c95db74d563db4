package command

import (
	"context"
	"log/slog"
	"time"

	"curfew/ctpolicy"
	"curfew/rules"
)

// refusedEvery is how often it is logged what the rules have refused.
const refusedEvery = 5 * time.Second

// A refusal is what the rules have refused for a policy, in packets.
type refusal struct{ maxPerSource, newPerSource uint64 }

// tellRefused logs a line for each policy that has refused something since the last look. The rules refuse by themselves.
func tellRefused(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(refusedEvery)
	defer tick.Stop()
	var before map[string]refusal
	for {
		if in, err := rules.Read(); err == nil {
			before = logRefused(log, in, before)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// logRefused answers what the counters say now. At the first look, and for a policy that is new, it logs nothing.
func logRefused(log *slog.Logger, in *rules.Installed, before map[string]refusal) map[string]refusal {
	now := map[string]refusal{}
	for i := range in.Policies {
		p := &in.Policies[i]
		c := in.Counters[p.Name]
		r := refusal{c[rules.CountMaxPerSource].Packets, c[rules.CountNewPerSource].Packets}
		now[p.Name] = r
		was, known := before[p.Name]
		if was.maxPerSource > r.maxPerSource || was.newPerSource > r.newPerSource {
			was = refusal{} // the table was lost, and its counters begin anew
		}
		if known && r != was {
			log.Info(refusedMessage(p), "policy", p.Name,
				"max_per_source", r.maxPerSource-was.maxPerSource, "new_per_source", r.newPerSource-was.newPerSource)
		}
	}
	return now
}

func refusedMessage(p *ctpolicy.Policy) string {
	if p.Enforced() {
		return "refused"
	}
	return "would refuse"
}
