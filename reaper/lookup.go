package reaper

import (
	"errors"
	"fmt"
	"net/netip"

	"curfew/ctpolicy"
	"curfew/ctpolicy/conntrack"
	"curfew/reaper/sockdiag"
)

// An end is one side of a flow, by the addresses that this side knows: the client the original tuple, the server the
// reply tuple.
type end struct{ local, remote netip.AddrPort }

func ends(e *conntrack.Entry) [2]end {
	return [2]end{{e.Orig.Src, e.Orig.Dst}, {e.Reply.Src, e.Reply.Dst}}
}

// A socket of this host is one end of a flow.
type socket struct {
	sockdiag.Socket
	end int // 0 is the client's, 1 the server's
}

// lookup finds the ends of a flow that are sockets of this host.
func (r *Reaper) lookup(e *conntrack.Entry) ([]socket, error) {
	if elsewhere, err := r.inZoneZero(e); elsewhere || err != nil {
		return nil, err
	}
	var found []socket
	for i, end := range ends(e) {
		s, err := r.lookupEnd(end)
		if err != nil && !errors.Is(err, sockdiag.ErrNotFound) {
			return nil, fmt.Errorf("look up the socket %s: %w", end.local, err)
		}
		// The remains of a closed socket (TIME_WAIT, or FIN_WAIT2 without a process) can't be destroyed.
		if err == nil && openSockets&sockdiag.States(s.State) != 0 {
			found = append(found, socket{s, i})
		}
	}
	return found, nil
}

// inZoneZero tells that an entry of another zone has the same tuple as one of zone 0: the sockets belong to that one.
func (r *Reaper) inZoneZero(e *conntrack.Entry) (bool, error) {
	if e.Zone == 0 {
		return false, nil
	}
	other, err := r.Flows.Get(e.Orig, 0)
	if gone(err) {
		return false, nil
	}
	return err == nil && other.Zone == 0 && other.Orig == e.Orig, err
}

// errTwoDevices is for addresses that are in use more than once (VRFs): nobody knows whose entry it is.
var errTwoDevices = errors.New("sockets on two devices have its addresses")

// twoDevices stands for errTwoDevices.
const twoDevices = ^uint32(0)

func (r *Reaper) lookupEnd(end end) (sockdiag.Socket, error) {
	if r.bound == nil {
		r.findDevices()
	}
	device := r.bound[end]
	if device == twoDevices {
		return sockdiag.Socket{}, errTwoDevices
	}
	return r.Sockets.LookupOn(end.local, end.remote, device)
}

// findDevices is for a strike that comes before the first list of all sockets.
func (r *Reaper) findDevices() {
	r.bound = map[end]uint32{}
	err := r.coveredSockets(false, func(*sockdiag.Socket, conntrack.Tuple, *ctpolicy.Policy) error { return nil })
	if err != nil {
		r.Log.Warn("find sockets that are bound to a device", "error", err)
	}
}

// rememberDevice keeps the device that a socket is bound to, by SO_BINDTODEVICE or in a VRF: the kernel finds it only with
// that (inet_sk_bound_dev_eq).
func rememberDevice(bound map[end]uint32, s *sockdiag.Socket) {
	if s.Interface == 0 {
		return
	}
	key := end{s.Local, s.Remote}
	if device, ok := bound[key]; ok && device != s.Interface {
		bound[key] = twoDevices
		return
	}
	bound[key] = s.Interface
}
