package ctpolicy

import (
	"errors"
	"fmt"
	"math"
)

// slotless says that a policy needs no slot.
const slotless = -1

// MaxSlots is how many policies with addresses may share a port: each needs a label bit there.
const MaxSlots = 16

var errSlots = fmt.Errorf("at most %d policies with from, to or except may share a port", MaxSlots)

// Slots gives each policy with addresses a label bit, as its offset from LabelMatched, that no other policy has with which it
// shares a port. The others get -1. Earlier policies keep their slot when one is added behind them.
func Slots(policies []Policy) (slots []int, err error) {
	slots = make([]int, len(policies))
	var taken [1 << 16]uint16 // by port, a bit for each slot
	var errs []error
	for i := range policies {
		p := &policies[i]
		slots[i] = slotless
		if !p.Addresses() {
			continue
		}
		var used uint16
		p.eachPort(func(port int) { used |= taken[port] })
		if used == math.MaxUint16 {
			errs = append(errs, fmt.Errorf("policy %q: %w", p.Name, errSlots))
			continue
		}
		slot := 0
		for used&(1<<slot) != 0 {
			slot++
		}
		slots[i] = slot
		p.eachPort(func(port int) { taken[port] |= 1 << slot })
	}
	return slots, errors.Join(errs...)
}

func (p *Policy) eachPort(fn func(port int)) {
	for _, r := range p.Ports {
		for port := int(r.First); port <= int(r.Last); port++ {
			fn(port)
		}
	}
}
