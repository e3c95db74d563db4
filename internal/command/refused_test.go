package command

import (
	"bytes"
	"log/slog"
	"testing"

	"curfew/ctpolicy"
	"curfew/rules"
)

func TestLogRefused(t *testing.T) {
	in := &rules.Installed{Policies: []ctpolicy.Policy{{Name: "web"}, {Name: "trial", Mode: ctpolicy.Report}}}
	var before map[string]refusal
	look := func(web, trial, opened uint64) string {
		in.Counters = map[string]map[string]rules.Counter{
			"web":   {rules.CountMaxPerSource: {Packets: web}, rules.CountNewPerSource: {Packets: opened}},
			"trial": {rules.CountMaxPerSource: {Packets: trial}},
		}
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}}))
		before = logRefused(log, in, before)
		return out.String()
	}
	for i, step := range []struct {
		web, trial, opened uint64
		want               string
	}{
		{5, 0, 0, ""}, // from before
		{5, 0, 0, ""},
		{7, 0, 1, "msg=refused policy=web max_per_source=2 new_per_source=1\n"},
		{7, 3, 1, "msg=\"would refuse\" policy=trial max_per_source=3 new_per_source=0\n"},
		{2, 3, 0, "msg=refused policy=web max_per_source=2 new_per_source=0\n"}, // the table was lost
	} {
		if got := look(step.web, step.trial, step.opened); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
}
