package netnstest

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// A Capture records the TCP packets on all devices of a host, as tcpdump -i any does, which can't run in an unprivileged
// user namespace (it wants to change its groups). The kernel writes them into a ring, see packet_mmap in its
// documentation; nothing is read before Stop.
type Capture struct {
	host    *Host
	devices map[int32]string
	fd      int
	ring    []byte
	once    sync.Once
}

const (
	frameSize = 256 // its header, and the first bytes of the packet
	blockSize = 1 << 20
	ringSize  = 32 << 20 // 131,072 packets
)

// Capture starts to record on all devices that the host has now.
func (h *Host) Capture() (*Capture, error) {
	c := &Capture{host: h, devices: map[int32]string{}, fd: -1}
	if err := h.Do(c.open); err != nil {
		c.Close()
		return nil, fmt.Errorf("capture on %s: %w", h.name, err)
	}
	return c, h.closeWith(c.Close)
}

func (c *Capture) open() error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, dev := range devices {
		c.devices[int32(dev.Index)] = dev.Name
	}
	// Without a protocol it gets no packets until it is bound, when the ring is there.
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return err
	}
	request := unix.TpacketReq{Block_size: blockSize, Block_nr: ringSize / blockSize, Frame_size: frameSize, Frame_nr: ringSize / frameSize}
	if err := unix.SetsockoptTpacketReq(c.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return err
	}
	if c.ring, err = unix.Mmap(c.fd, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)})
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

var errDropped = errors.New("the ring is full: packets were lost")

// Stop ends the capture, and answers its packets in their order. It is an error when some were lost.
func (c *Capture) Stop() ([]Packet, error) {
	defer c.Close()
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = errDropped
	}
	var packets []Packet
	if err == nil {
		packets, err = c.read()
	}
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", c.host.name, err)
	}
	return packets, nil
}

func (c *Capture) read() (packets []Packet, err error) {
	for at := 0; at < len(c.ring); at += frameSize {
		f := frame(c.ring[at : at+frameSize])
		if !f.ready() {
			break
		}
		p, isTCP, err := f.packet()
		if err != nil {
			return nil, err
		}
		if isTCP {
			p.Dev = c.devices[f.device()]
			packets = append(packets, p)
		}
	}
	return packets, nil
}

// Close ends the capture without reading it. A second Close does nothing.
func (c *Capture) Close() {
	c.once.Do(func() {
		if c.ring != nil {
			_ = unix.Munmap(c.ring)
		}
		if c.fd >= 0 {
			_ = unix.Close(c.fd)
		}
	})
}
