package reaper

import (
	"fmt"
	"strings"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A Method is how an end of a flow was ended, or the flow.
type Method string

// The methods.
const (
	MethodSocket Method = "socket"   // its socket here was destroyed
	MethodPeer   Method = "peer"     // the reset of its peer's socket, which was destroyed here, told it
	MethodRule   Method = "rule"     // a rule has reset it
	MethodGone   Method = "gone"     // it had closed already
	MethodNone   Method = "survived" // it could not be ended
)

// An EndResult tells what became of one end.
type EndResult struct {
	Method Method // "" while it is not known
	// Reason says why it survived.
	Reason string
}

// A Result tells what became of a flow whose time was up.
type Result struct {
	Policy string
	Flow   conntrack.Tuple
	// Limit is the limit that was reached.
	Limit ctpolicy.Cause
	// Age is the time since its birth, as far as that is known.
	Age time.Duration
	// Late is the time since its deadline.
	Late time.Duration
	// Method is that of the end that was harder to end.
	Method         Method
	Client, Server EndResult
}

// Reason says which end survived, and why.
func (r *Result) Reason() string {
	var reasons []string
	if r.Client.Reason != "" {
		reasons = append(reasons, fmt.Sprintf("client %s: %s", r.Flow.Src, r.Client.Reason))
	}
	if r.Server.Reason != "" {
		reasons = append(reasons, fmt.Sprintf("server %s: %s", r.Flow.Dst, r.Server.Reason))
	}
	return strings.Join(reasons, "; ")
}

// hardest is the method of a flow.
func hardest(ends [2]EndResult) Method {
	for _, m := range []Method{MethodNone, MethodSocket, MethodRule} {
		if ends[0].Method == m || ends[1].Method == m {
			return m
		}
	}
	return MethodGone
}

// settle gives the ends whose end is not known yet a result.
func (it *item) settle(m Method, reason string) {
	for i := range it.results {
		if it.results[i].Method == "" {
			it.results[i] = EndResult{m, reason}
		}
	}
}

// settled tells whether the results of both ends are known.
func (it *item) settled() bool { return it.results[0].Method != "" && it.results[1].Method != "" }

func (r *Reaper) report(it *item) {
	now := r.now()
	result := Result{
		Policy: it.policy.Name, Flow: it.entry.Orig, Limit: it.deadline.Cause,
		Age: now.Sub(it.birth), Late: now.Sub(it.deadline.At), Method: hardest(it.results),
		Client: it.results[0], Server: it.results[1],
	}
	log, message := r.Log.Info, "ended"
	if result.Method == MethodNone {
		log, message = r.Log.Warn, "survived"
	}
	attrs := []any{
		"policy", result.Policy, "flow", result.Flow.String(), "limit", result.Limit,
		"age", result.Age.Round(time.Millisecond), "late", fmt.Sprintf("%.1fms", result.Late.Seconds()*1000),
		"method", result.Method, "client", result.Client.Method, "server", result.Server.Method,
	}
	if reason := result.Reason(); reason != "" {
		attrs = append(attrs, "reason", reason)
	}
	log(message, attrs...)
	if r.Ended != nil {
		r.Ended(&result)
	}
}
