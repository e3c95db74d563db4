package conntrack

import (
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// maxFilterRanges keeps the filter small enough for a net.core.optmem_max of 20480, the default before Linux 6.8.
const maxFilterRanges = 128

var allPorts = []PortRange{{0, 65535}}

// Where things are in an event: it is one message, and has all its attributes behind the two headers.
const (
	eventAttrs = unix.NLMSG_HDRLEN + nfgenmsgSize
	attrValue  = unix.SizeofNlAttr

	scratchProto = 0 // the filter's memory cell for where CTA_TUPLE_PROTO of the original direction is
)

var (
	take = bpf.RetConstant{Val: 0xffffffff} // the number of bytes to keep
	drop = bpf.RetConstant{}
)

// destroyFilter is the classic BPF program of OpenDestroyed. The kernel finds the attributes for it (SKF_AD_NLATTR and
// SKF_AD_NLATTR_NEST in net/core/filter.c). An event without a state (older kernels send none in it, nor does a flow in
// a flowtable) is taken for that of an open flow.
func destroyFilter(ports []PortRange) []unix.SockFilter {
	if len(ports) > maxFilterRanges {
		ports = allPorts
	}
	program := onlyTCP()
	program = append(program, onlyOpen()...)
	for _, attr := range []uint32{ctaProtoDstPort, ctaProtoSrcPort} {
		program = append(program, takePorts(attr, ports)...)
	}
	return assemble(append(program, drop))
}

// onlyTCP drops events of other protocols.
func onlyTCP() []bpf.Instruction {
	return slices.Concat(
		[]bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegA, Val: eventAttrs}},
		step(bpf.ExtNetlinkAttr, ctaTupleOrig, drop),
		step(bpf.ExtNetlinkAttrNested, ctaTupleProto, drop),
		[]bpf.Instruction{bpf.StoreScratch{Src: bpf.RegA, N: scratchProto}},
		step(bpf.ExtNetlinkAttrNested, ctaProtoNum, drop),
		[]bpf.Instruction{
			bpf.TAX{},
			bpf.LoadIndirect{Off: attrValue, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipTrue: 1},
			drop,
		},
	)
}

// onlyOpen drops events whose state is not one of an open flow, which are in a row.
func onlyOpen() []bpf.Instruction {
	state := []bpf.Instruction{
		bpf.TAX{},
		bpf.LoadIndirect{Off: attrValue, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: StateEstablished, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: StateLastAck, SkipTrue: 1},
		drop,
	}
	// Steps that find nothing jump behind all of it.
	tcpState := append(stepOver(bpf.ExtNetlinkAttrNested, ctaTCPState, len(state)), state...)
	info := append(stepOver(bpf.ExtNetlinkAttrNested, ctaProtoInfoTCP, len(tcpState)), tcpState...)
	all := append(stepOver(bpf.ExtNetlinkAttr, ctaProtoInfo, len(info)), info...)
	return append([]bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegA, Val: eventAttrs}}, all...)
}

// takePorts takes events with a port in the ranges.
func takePorts(attr uint32, ports []PortRange) []bpf.Instruction {
	program := slices.Concat(
		[]bpf.Instruction{bpf.LoadScratch{Dst: bpf.RegA, N: scratchProto}},
		step(bpf.ExtNetlinkAttrNested, attr, drop),
		[]bpf.Instruction{bpf.TAX{}, bpf.LoadIndirect{Off: attrValue, Size: 2}},
	)
	for _, r := range ports {
		program = append(program,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(r.First), SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(r.Last), SkipTrue: 1},
			take)
	}
	return program
}

// step goes from attribute A, or from the first of several, to one of type attr, and returns if there is none.
func step(how bpf.Extension, attr uint32, none bpf.RetConstant) []bpf.Instruction {
	return append(find(how, attr), bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1}, none)
}

// stepOver is step, and skips instructions if there is none.
func stepOver(how bpf.Extension, attr uint32, skip int) []bpf.Instruction {
	return append(find(how, attr), bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: uint8(skip)})
}

func find(how bpf.Extension, attr uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.LoadConstant{Dst: bpf.RegX, Val: attr}, bpf.LoadExtension{Num: how}}
}

// assemble can't fail: each instruction is one of the above, and each jump a short one.
func assemble(program []bpf.Instruction) []unix.SockFilter {
	raw, err := bpf.Assemble(program)
	if err != nil {
		panic(err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter
}
