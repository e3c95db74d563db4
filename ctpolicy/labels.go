package ctpolicy

// The conntrack label bits that are ours. nft prints them as numbers.
const (
	// LabelMatched is the first of MaxSlots: the flow's addresses are those of the policy that has the slot.
	LabelMatched = 104
	// LabelInbound, LabelOutbound and LabelForwarded tell the direction where policies differ in it.
	LabelForwarded = 120
	LabelOutbound  = 121
	LabelInbound   = 122
	// LabelReported is for flows of a policy in report mode that would have been ended.
	LabelReported = 123
	// LabelRetried is for flows whose client had to send its SYN again: they began later than their entry.
	LabelRetried = 124
	// LabelCovered is for flows that a policy covers.
	LabelCovered = 125
	// LabelTracked is for flows that got the policy's ct timeout object.
	LabelTracked = 126
	// LabelRegistered is for flows in the fallback's register.
	LabelRegistered = 127
)

// FirstLabel is the first bit that is ours; all from there on are.
const FirstLabel = LabelMatched

// DirectionLabel is the bit of a direction.
func DirectionLabel(d Direction) int {
	switch d {
	case Inbound:
		return LabelInbound
	case Outbound:
		return LabelOutbound
	}
	return LabelForwarded
}
