package reaper

import (
	"fmt"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A Method is how a flow, or one end of it, was ended.
type Method string

// The methods. Of its ends' methods a flow has the first in this order; never MethodPeer, which comes with MethodSocket.
const (
	MethodNone   Method = "survived" // it could not be ended
	MethodSocket Method = "socket"   // its socket here was destroyed
	MethodPeer   Method = "peer"     // the other end's socket was destroyed here, and that told it
	MethodRule   Method = "rule"     // the rules have reset it
	MethodGone   Method = "gone"     // it had closed already

	// MethodReported is for flows, and both their ends, whose policy is in report mode: they are open.
	MethodReported Method = "reported"
)

// A Result tells what became of a flow whose time was up.
type Result struct {
	Policy string
	Flow   conntrack.Tuple
	// Limit is the limit that was reached.
	Limit ctpolicy.Cause
	// Age is the time since its birth, as far as that is known.
	Age time.Duration
	// Late is the time since its deadline.
	Late           time.Duration
	Method         Method
	Client, Server EndResult
	// Reason says which ends survived, and why.
	Reason string
}

// An EndResult tells what became of one end.
type EndResult struct {
	Method Method
	Reason string // why it survived: "did not answer"
}

// An outcome is what is known so far of one end of a flow whose time is up.
type outcome struct {
	method Method // empty while it may be open
	asked  bool   // a challenge was sent
	reason string // why it is open, as far as that is known
}

func (o *outcome) open() bool { return o.method == "" }

func (o *outcome) result() EndResult {
	if o.open() {
		return EndResult{MethodNone, o.reason}
	}
	return EndResult{Method: o.method}
}

// settled tells that no end can be open.
func (it *item) settled() bool { return !it.outcomes[0].open() && !it.outcomes[1].open() }

// settleOpen sets the method of the ends that are not settled.
func (it *item) settleOpen(m Method) {
	for i := range it.outcomes {
		if it.outcomes[i].open() {
			it.outcomes[i].method = m
		}
	}
}

// blame sets the reason of the ends that are not settled.
func (it *item) blame(reason string) {
	for i := range it.outcomes {
		it.outcomes[i].reason = reason
	}
}

// method is that of the whole flow.
func (r *Result) method() Method {
	for _, m := range []Method{MethodNone, MethodReported, MethodSocket, MethodRule} {
		if r.Client.Method == m || r.Server.Method == m {
			return m
		}
	}
	return MethodGone
}

// reason names the ends that survived.
func (r *Result) reason(e *conntrack.Entry) string {
	client, server := fmt.Sprintf("client %s", e.Orig.Src), fmt.Sprintf("server %s", e.Reply.Src)
	switch {
	case r.Client.Method != MethodNone && r.Server.Method != MethodNone:
		return ""
	case r.Server.Method != MethodNone:
		return client + " " + r.Client.Reason
	case r.Client.Method != MethodNone:
		return server + " " + r.Server.Reason
	case r.Client.Reason == r.Server.Reason:
		return client + " and " + server + " " + r.Client.Reason
	}
	return client + " " + r.Client.Reason + ", " + server + " " + r.Server.Reason
}

func (r *Reaper) report(it *item) {
	ended := r.now()
	if it.settled() && it.ended != 0 {
		ended = max(it.ended, it.deadline.At)
	}
	result := Result{
		Policy: it.policy.Name, Flow: it.entry.Orig, Limit: it.deadline.Cause,
		Age: ended.Sub(it.birth), Late: ended.Sub(it.deadline.At),
		Client: it.outcomes[0].result(), Server: it.outcomes[1].result(),
	}
	result.Method, result.Reason = result.method(), result.reason(&it.entry)
	r.logResult(&result)
	if r.Ended != nil {
		r.Ended(&result)
	}
}

func (r *Reaper) logResult(result *Result) {
	log, message := r.Log.Info, "ended"
	switch result.Method {
	case MethodNone:
		log, message = r.Log.Warn, "survived"
	case MethodReported:
		message = "would end"
	}
	attrs := []any{
		"policy", result.Policy, "flow", result.Flow.String(), "limit", result.Limit,
		"age", result.Age.Round(time.Millisecond), "late", fmt.Sprintf("%.1fms", result.Late.Seconds()*1000),
		"method", result.Method, "client", result.Client.Method, "server", result.Server.Method,
	}
	if result.Reason != "" {
		attrs = append(attrs, "reason", result.Reason)
	}
	log(message, attrs...)
}
