package reaper

import (
	"fmt"
	"time"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
)

// A Method is how a flow was ended.
type Method string

// The methods.
const (
	MethodSocket Method = "socket"   // its socket here was destroyed, which tells the other end
	MethodRule   Method = "rule"     // the rule has reset both ends
	MethodGone   Method = "gone"     // both ends had closed already
	MethodNone   Method = "survived" // it could not be ended
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
	Late   time.Duration
	Method Method
	// Reason says why a flow survived.
	Reason string
}

func (r *Reaper) report(it *item, method Method, reason string) {
	now := r.now()
	result := Result{
		Policy: it.policy.Name, Flow: it.entry.Orig, Limit: it.deadline.Cause,
		Age: now.Sub(it.birth), Late: now.Sub(it.deadline.At), Method: method, Reason: reason,
	}
	log, message := r.Log.Info, "ended"
	if method == MethodNone {
		log, message = r.Log.Warn, "survived"
	}
	attrs := []any{
		"policy", result.Policy, "flow", result.Flow.String(), "limit", result.Limit,
		"age", result.Age.Round(time.Millisecond), "late", fmt.Sprintf("%.1fms", result.Late.Seconds()*1000), "method", method,
	}
	if reason != "" {
		attrs = append(attrs, "reason", reason)
	}
	log(message, attrs...)
	if r.Ended != nil {
		r.Ended(&result)
	}
}
