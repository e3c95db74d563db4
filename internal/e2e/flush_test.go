package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What takes something away from a running curfew.
var losses = []struct {
	name    string
	command []string
	table   bool // the table is lost
}{
	{"flush ruleset", []string{"nft", "flush", "ruleset"}, true},
	{"delete table", []string{"nft", "delete", "table", "inet", "curfew"}, true},
	{"flush conntrack", []string{"conntrack", "-F"}, false},
}

// TestLoss takes away the rules or the entries while connections are open. The rules are put back; connections without an entry
// may end late, never early.
func TestLoss(t *testing.T) {
	for _, name := range []string{"both here", "server here"} {
		for _, reload := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reload %v", name, reload), func(t *testing.T) {
				t.Parallel()
				var stories []*lossStory
				for i := range losses {
					s := &lossStory{t: t, top: topologies(t)[name](t), loss: i, reload: reload}
					s.top.name = fmt.Sprintf("%s, %s", name, losses[i].name)
					s.open()
					stories = append(stories, s)
				}
				for _, s := range stories {
					s.lose()
				}
				for _, s := range stories {
					s.end()
				}
			})
		}
	}
}

type lossStory struct {
	t      *testing.T
	top    *topology
	loss   int
	reload bool

	port   *limitedPort
	reaper *process
	pairs  []*pair
	lost   time.Time
}

// sweep is the interval between two sweeps for the limit.
const sweep = limit / 6

func (s *lossStory) open() {
	s.port = s.top.listenOn(s.t, 8081)
	s.pairs = append(s.port.open(s.t, "opened before, silent"), s.port.openBusy(s.t, "opened before, busy")...)
	from := time.Now()
	s.reaper = start(s.t, s.top.curfew, "--port", "8081", "--max-age", limit.String())
	for _, p := range s.pairs {
		p.born = span{from, time.Now()}
	}
	s.pairs = append(s.pairs, s.port.open(s.t, "opened after, silent")...)
	s.pairs = append(s.pairs, s.port.openBusy(s.t, "opened after, busy")...)
}

func (s *lossStory) lose() {
	sleepUntil(s.pairs[0].born.to.Add(limit / 3))
	mustAllBeAlive(s.t, s.pairs, "before the loss")
	loss := losses[s.loss]
	tool(s.t, s.top.curfew, "", loss.command[0], loss.command[1:]...)
	s.lost = time.Now()
	if s.reload {
		if err := s.reaper.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			s.t.Fatal(err)
		}
		s.reaper.await("msg=reloaded")
		if rules := tool(s.t, s.top.curfew, "", "nft", "list", "tables"); !strings.Contains(rules, "table inet curfew") {
			s.t.Errorf("%s: no table after SIGHUP: %q", s.top.name, rules)
		}
	}
	for _, p := range s.pairs {
		p.mustTalk(s.t)
	}
}

func (s *lossStory) end() {
	for _, p := range s.pairs {
		s.mustEndLate(p)
	}
	loss := losses[s.loss]
	if loss.table {
		if !s.reload {
			s.reaper.await(`level=ERROR msg="the rules were changed: put back" by="nft (pid `)
		}
	} else if log := s.reaper.log.String(); strings.Contains(log, "level=ERROR") {
		s.t.Errorf("%s: an error in the log:\n%s", s.top.name, log)
	}
	again := append(s.port.open(s.t, "opened after the loss, silent"), s.port.openBusy(s.t, "opened after the loss, busy")...)
	mustAllEnd(s.t, again, limit)
	s.reaper.stop()
}

// mustEndLate takes a limit that begins anew when entries are lost, and is found by the next sweep. Without the table ages
// stay as they are.
func (s *lossStory) mustEndLate(p *pair) {
	if !losses[s.loss].table {
		p.born.to = s.lost.Add(sweep)
	}
	p.mustEnd(s.t, limit)
}
