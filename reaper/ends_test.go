package reaper

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"curfew/ctpolicy"
	"curfew/reaper/challenge"
	"curfew/reaper/sockdiag"
)

// sends counts challenges by their target.
func (w *world) sends() map[string]int {
	sent := map[string]int{}
	w.sent = func(to string) { sent[to]++ }
	return sent
}

// eachEnd calls fn with a flow between two remote hosts, whose ends are one that hears and one that does not.
func eachEnd(t *testing.T, fn func(t *testing.T, w *world, c *conn, hears, deaf *tcp)) {
	for _, name := range []string{"client", "server"} {
		t.Run("deaf "+name, func(t *testing.T) {
			w := newWorld(t, limit(10*time.Second, 0))
			c := w.open(forwarded, 40000, port)
			hears, deaf := c.server, c.client
			if name == "server" {
				hears, deaf = deaf, hears
			}
			deaf.deaf = -1
			fn(t, w, c, hears, deaf)
		})
	}
}

// wantEnds fails unless a result is of these methods, the client's first, for the flow whose end is deaf.
func wantEnds(t *testing.T, r *Result, c *conn, deaf *tcp, hears, other Method) {
	t.Helper()
	client, server := hears, other
	if deaf == c.client {
		client, server = other, hears
	}
	if r.Client.Method != client || r.Server.Method != server {
		t.Errorf("result %+v, want %s and %s", r, client, server)
	}
}

// The other end ends at once. The flow is reported as a survivor once, and as ended when the deaf end hears again.
func TestOneDeafEnd(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, hears, deaf *tcp) {
		sent := w.sends()
		w.run(10*time.Second + ruleDelay)
		if hears.open() || len(w.results) != 0 {
			t.Fatalf("%s: %+v", hears.local, w.results)
		}
		w.run(challengesTake)
		r := w.one()
		wantEnds(t, &r, c, deaf, MethodRule, MethodNone)
		name := "server "
		if deaf == c.client {
			name = "client "
		}
		if want := name + deaf.local.String() + " did not answer"; r.Reason != want || r.Method != MethodNone {
			t.Errorf("reason %q, want %q", r.Reason, want)
		}
		if sent[hears.local.String()] != 1 || sent[deaf.local.String()] != challenge.Attempts {
			t.Errorf("challenges %v", sent)
		}
		w.run(2 * restAfter)
		w.one()
		deaf.deaf = 0
		w.run(restAfter)
		ended(t, c, 10*time.Second, 4*restAfter)
		if len(w.results) != 2 {
			t.Fatalf("results %+v", w.results)
		}
		r = w.results[1]
		wantEnds(t, &r, c, deaf, MethodRule, MethodRule)
		if r.Method != MethodRule || r.Reason != "" {
			t.Errorf("result %+v", r)
		}
		w.drained()
	})
}

// Its entry stays, so the rule answers what it still sends. Nobody has to challenge it after that.
func TestDeafEndSends(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, _, deaf *tcp) {
		w.run(20 * time.Second)
		c.send(deaf, data, "")
		ended(t, c, 20*time.Second, 0)
		sent := w.sends()
		w.run(restAfter)
		if len(w.results) != 2 || w.results[1].Method != MethodRule || len(sent) != 0 {
			t.Errorf("results %+v, challenges %v", w.results, sent)
		}
		w.run(2*lingering + time.Second)
		if w.find(c.tuple) != nil {
			t.Error("the entry is still there")
		}
		w.drained()
	})
}

// Until its entry is gone.
func TestDeafForEver(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, hears, deaf *tcp) {
		w.run(10*time.Second + ctpolicy.Window + restAfter)
		w.one()
		if hears.open() || !deaf.open() || w.find(c.tuple) != nil {
			t.Error("the wrong end is open, or the entry is there")
		}
		w.drained()
	})
}

func TestUnreachableThenBack(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	c.client.deaf, c.server.deaf = -1, -1
	w.run(30 * time.Second)
	if r := w.one(); r.Reason != "client 10.0.0.2:40000 and server 10.0.0.3:389 did not answer" {
		t.Errorf("reason %q", r.Reason)
	}
	c.client.deaf, c.server.deaf = 0, 0
	w.run(restAfter)
	ended(t, c, 30*time.Second, restAfter)
	w.drained()
}

// One end takes longer than the other.
func TestSlowEnd(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, hears, deaf *tcp) {
		deaf.deaf = challenge.Attempts - 1
		sent := w.sends()
		w.run(10*time.Second + challengesTake)
		r := w.one()
		wantEnds(t, &r, c, deaf, MethodRule, MethodRule)
		if sent[hears.local.String()] != 1 || sent[deaf.local.String()] != challenge.Attempts {
			t.Errorf("challenges %v", sent)
		}
	})
}

// The rule is faster than any challenge.
func TestBusyEnds(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	for i := range 11000 {
		w.after(time.Duration(i)*time.Millisecond, func() {
			c.send(c.client, data, "")
			c.send(c.server, data, "")
		})
	}
	sent := w.sends()
	w.run(11 * time.Second)
	ended(t, c, 10*time.Second, 15*time.Millisecond)
	if r := w.one(); r.Client.Method != MethodRule || r.Server.Method != MethodRule || len(sent) != 0 {
		t.Errorf("result %+v, challenges %v", r, sent)
	}
}

// The socket here went without a word, so conntrack has seen nothing, and the other end still has to be told.
func TestClosedHereWithoutAWord(t *testing.T) {
	for _, p := range []place{serverHere, clientHere} {
		w := newWorld(t, limit(10*time.Second, 0))
		c := w.open(p, 40000, port)
		local, remote := c.server, c.client
		if p == clientHere {
			local, remote = remote, local
		}
		local.state, remote.deaf = sockdiag.Close, -1
		w.run(14 * time.Second)
		r := w.one()
		wantEnds(t, &r, c, remote, MethodGone, MethodNone)
		remote.deaf = 0
		w.run(restAfter)
		ended(t, c, 10*time.Second, 2*restAfter)
		r = w.results[1]
		wantEnds(t, &r, c, remote, MethodGone, MethodRule)
		if r.Method != MethodRule {
			t.Errorf("result %+v", r)
		}
	}
}

// What the rules have seen of an earlier flow on the same ports says nothing of this one.
func TestEarlierFlowOnTheSamePorts(t *testing.T) {
	for _, policy := range []ctpolicy.Policy{limit(2*time.Second, 0), limit(0, 2*time.Second)} {
		w := newWorld(t, policy)
		for range 3 {
			c := w.open(forwarded, 40000, port)
			sent := w.sends()
			w.run(2500 * time.Millisecond)
			ended(t, c, 2*time.Second, 60*time.Millisecond)
			if len(sent) != 2 {
				t.Errorf("challenges %v", sent)
			}
		}
		if len(w.results) != 3 {
			t.Errorf("results %+v", w.results)
		}
	}
}

// A remote end that can't be sent a challenge survives for that reason; the other one ends.
func TestSendFails(t *testing.T) {
	for _, test := range []struct {
		fault error
		want  string
	}{
		{unix.EPERM, "can't be reached: a firewall on this host drops our challenges"},
		{unix.ENETUNREACH, "can't be reached: network is unreachable"},
	} {
		eachEnd(t, func(t *testing.T, w *world, c *conn, _, deaf *tcp) {
			deaf.deaf = 0
			w.unsendable, w.sendFault = deaf.local, test.fault
			w.run(10*time.Second + ruleDelay + challengesTake)
			r := w.one()
			wantEnds(t, &r, c, deaf, MethodRule, MethodNone)
			if !strings.Contains(r.Reason, deaf.local.String()+" "+test.want) {
				t.Errorf("reason %q, want %q", r.Reason, test.want)
			}
			w.sendFault = nil
			w.run(restAfter)
			ended(t, c, 13*time.Second, restAfter)
		})
	}
}

// One challenge that was sent, and was not answered, says more than an error of another one.
func TestSendFailsOnce(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	c.client.deaf, c.server.deaf = -1, -1
	n := 0
	w.fault = func(call string) error {
		if call != "Send" {
			return nil
		}
		if n++; n > 2 {
			return unix.ENOBUFS
		}
		return nil
	}
	w.run(15 * time.Second)
	if r := w.one(); !strings.HasSuffix(r.Reason, "did not answer") {
		t.Errorf("reason %q", r.Reason)
	}
}

// An answer that takes its time is noticed soon after it comes.
func TestLateAnswer(t *testing.T) {
	for _, takes := range []time.Duration{20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond, 350 * time.Millisecond} {
		eachEnd(t, func(t *testing.T, w *world, c *conn, hears, deaf *tcp) {
			w.after(10*time.Second+ruleDelay+takes, func() { c.send(deaf, data, "") })
			w.run(11 * time.Second)
			if r := w.one(); r.Method != MethodRule || r.Late > ruleDelay+2*takes {
				t.Errorf("an answer after %s: %+v", takes, r)
			}
		})
	}
}

// The entry of a survivor goes while it is challenged again: nobody knows how it ended, and it has been reported.
func TestEntryOfASurvivorGoes(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, _, _ *tcp) {
		w.run(10*time.Second + ruleDelay + challengesTake + restAfter + 100*time.Millisecond)
		w.flush()
		w.run(restAfter)
		w.one()
		w.drained()
	})
}

// The last looks at an ended flow's entry fail: the reaper does not report it again, and leaves it to a sweep.
func TestForgettingFails(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	w.open(forwarded, 40000, port)
	w.fault = func(call string) error {
		if call == "Again" && len(w.results) > 0 {
			return errBroken
		}
		return nil
	}
	w.run(10*time.Second + lingering + (maxTries-1)*repeatAfter + 100*time.Millisecond)
	w.one()
	if n := w.r.Scheduled(); n != 0 {
		t.Errorf("%d scheduled", n)
	}
	w.fault = nil
	w.run(restAfter)
	w.drained()
	if len(w.entries) != 0 {
		t.Error("the entry is left")
	}
}

// The rules are lost: nobody knows, but nobody is spared.
func TestClosedFails(t *testing.T) {
	w := newWorld(t, limit(10*time.Second, 0))
	c := w.open(forwarded, 40000, port)
	lost := true
	w.fault = func(call string) error {
		if call == "Closed" && lost {
			return errBroken
		}
		return nil
	}
	w.run(10*time.Second + ruleDelay)
	ended(t, c, 10*time.Second, ruleDelay)
	w.run(challengesTake)
	r := w.one()
	if r.Method != MethodNone || !strings.Contains(r.Reason, "the rules can't tell: broken") {
		t.Errorf("result %+v", r)
	}
	lost = false
	w.run(restAfter)
	if len(w.results) != 2 || w.results[1].Method != MethodRule {
		t.Errorf("results %+v", w.results)
	}
	w.drained()
}

// Where the rules can't tell of one end, the other one is known and challenged all the same.
func TestClosedFailsForOneEnd(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, hears, deaf *tcp) {
		deaf.deaf = 0
		w.unknown = deaf.local
		sent := w.sends()
		w.run(15 * time.Second)
		ended(t, c, 10*time.Second, ruleDelay)
		r := w.one()
		wantEnds(t, &r, c, deaf, MethodRule, MethodNone)
		if sent[hears.local.String()] != 1 || sent[deaf.local.String()] != challenge.Attempts {
			t.Errorf("challenges %v", sent)
		}
	})
}

// A pass strikes a survivor once, and does not wait for the next time.
func TestSurvivorAndPasses(t *testing.T) {
	eachEnd(t, func(t *testing.T, w *world, c *conn, _, deaf *tcp) {
		w.kill()
		w.run(10100 * time.Millisecond) // the kernel alone has nothing to answer
		for pass := range 3 {
			w.start()
			w.sweep()
			w.drain()
			if n := w.r.Scheduled(); n != 0 {
				t.Errorf("%d scheduled after pass %d", n, pass)
			}
			if len(w.results) != pass+1 {
				t.Fatalf("pass %d: results %+v", pass, w.results)
			}
			wantEnds(t, &w.results[pass], c, deaf, MethodRule, MethodNone)
			w.kill()
			w.run(time.Minute)
		}
		c.send(deaf, data, "") // the rule is there, whoever else is not
		ended(t, c, 3*time.Minute, time.Minute)
		w.start()
		sent := w.sends()
		w.sweep()
		w.drain()
		wantEnds(t, &w.results[3], c, deaf, MethodRule, MethodRule)
		if len(sent) != 0 || w.find(c.tuple) != nil {
			t.Errorf("challenges %v, or the entry is left", sent)
		}
	})
}

// Thousands of ends have the same deadline.
func TestManyFlowsAtOnce(t *testing.T) {
	const many = 2000
	w := newWorld(t, limit(30*time.Second, 0))
	w.cost = 20 * time.Microsecond
	var conns []*conn
	for i := range many {
		c := w.open(forwarded, uint16(10000+i), port)
		switch i % 10 {
		case 0:
			c.client.deaf = -1
		case 1:
			c.server.deaf = 1
		}
		conns = append(conns, c)
	}
	w.run(36 * time.Second)
	survivors := 0
	for _, r := range w.results {
		if r.Method == MethodNone {
			survivors++
		}
	}
	if len(w.results) != many || survivors != many/10 {
		t.Errorf("%d results, %d survivors", len(w.results), survivors)
	}
	for _, c := range conns {
		if c.client.deaf == 0 {
			ended(t, c, 30*time.Second, 3*time.Second)
		}
	}
}

// The method of each end, wherever the ends are, is in the result and in the log.
func TestMethodsOfEnds(t *testing.T) {
	want := map[string][2]Method{
		bothHere.name:   {MethodSocket, MethodPeer},
		serverHere.name: {MethodPeer, MethodSocket},
		clientHere.name: {MethodSocket, MethodPeer},
		forwarded.name:  {MethodRule, MethodRule},
	}
	forPlaces(t, func(t *testing.T, p place) {
		w := newWorld(t, limit(10*time.Second, 0))
		w.open(p, 40000, port)
		w.run(11 * time.Second)
		r := w.one()
		if got := [2]Method{r.Client.Method, r.Server.Method}; got != want[p.name] {
			t.Errorf("methods %v, want %v", got, want[p.name])
		}
		log := w.log.String()
		for _, part := range []string{"method=" + string(r.Method), "client=" + string(r.Client.Method), "server=" + string(r.Server.Method)} {
			if !strings.Contains(log, " "+part) {
				t.Errorf("no %s in %s", part, log)
			}
		}
	})
}
