package ctpolicy

import "fmt"

// A Direction is where the ends of a flow are, seen from this host. Address translation does not matter: what counts
// is who has the sockets.
type Direction string

// The directions. A flow between two sockets of this host is inbound.
const (
	Any       Direction = ""          // of a policy: all directions
	Inbound   Direction = "inbound"   // its server is here
	Outbound  Direction = "outbound"  // its client is here, and its server is not
	Forwarded Direction = "forwarded" // neither is
)

// Directions are all that a flow can have.
var Directions = []Direction{Inbound, Outbound, Forwarded}

// ParseDirection reads any, inbound, outbound or forwarded.
func ParseDirection(s string) (Direction, error) {
	switch d := Direction(s); d {
	case "any":
		return Any, nil
	case Inbound, Outbound, Forwarded:
		return d, nil
	}
	return Any, fmt.Errorf("%q is not a direction: it must be any, inbound, outbound or forwarded", s)
}

// String is the word that ParseDirection reads.
func (d Direction) String() string {
	if d == Any {
		return "any"
	}
	return string(d)
}

// Includes tells whether a policy of this direction covers flows of another.
func (d Direction) Includes(of Direction) bool { return d == Any || d == of }
