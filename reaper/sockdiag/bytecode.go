package sockdiag

import "encoding/binary"

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

func containsPort(ranges []PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// Codes of struct inet_diag_bc_op (include/uapi/linux/inet_diag.h).
const (
	opJump      = 1  // INET_DIAG_BC_JMP
	opLocalMin  = 2  // INET_DIAG_BC_S_GE
	opLocalMax  = 3  // INET_DIAG_BC_S_LE
	opRemoteMin = 4  // INET_DIAG_BC_D_GE
	opRemoteMax = 5  // INET_DIAG_BC_D_LE
	opMark      = 10 // INET_DIAG_BC_MARK_COND
)

const (
	opSize      = 4          // code u8, yes u8, no u16
	compareSize = 2 * opSize // a comparison has its port in a second op, where no would be
	rangeSize   = 2*compareSize + opSize
	markSize    = opSize + 8 // mark u32, mask u32

	// maxBytecode is what fits into one attribute, so every jump fits into its 16 bits too.
	maxBytecode = 65535 - 4
)

// compile makes the program with which the kernel picks sockets by their ports. It is nil when every socket is wanted
// or the program would not fit: the caller filters in any case.
//
// Each op jumps forward by yes or by no bytes. A socket is taken when the program ends exactly at its end, and not when
// a jump goes 4 bytes further (inet_diag_bc_run). Each range is
//
//	port >= first   else to the next range
//	port <= last    else to the next range
//	jump to the end
//
// and after the last one stands a jump beyond the end.
func compile(local, remote []PortRange) []byte {
	size := (len(local)+len(remote))*rangeSize + opSize
	if len(local)+len(remote) == 0 || size > maxBytecode {
		return nil
	}
	b := make([]byte, 0, size)
	for _, r := range local {
		b = appendRange(b, opLocalMin, opLocalMax, r, size)
	}
	for _, r := range remote {
		b = appendRange(b, opRemoteMin, opRemoteMax, r, size)
	}
	return appendOp(b, opJump, opSize, 2*opSize)
}

func appendRange(b []byte, atLeast, atMost uint8, r PortRange, size int) []byte {
	b = appendOp(b, atLeast, compareSize, rangeSize)
	b = appendOp(b, 0, 0, r.First)
	b = appendOp(b, atMost, compareSize, rangeSize-compareSize)
	b = appendOp(b, 0, 0, r.Last)
	return appendOp(b, opJump, opSize, uint16(size-len(b)))
}

// appendOp appends a struct inet_diag_bc_op, which is in host byte order.
func appendOp(b []byte, code, yes uint8, no uint16) []byte {
	b = append(b, code, yes)
	return binary.NativeEndian.AppendUint16(b, no)
}
