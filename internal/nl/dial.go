package nl

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Dial opens a socket of a netlink family (unix.NETLINK_*) with room for rcvbuf bytes of unread answers. Without
// CAP_NET_ADMIN in the first user namespace the system's net.core.rmem_max is the limit.
func Dial(family, rcvbuf int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c, err := setUp(fd, rcvbuf)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func setUp(fd, rcvbuf int) (*Conn, error) {
	if err := setOptions(fd, rcvbuf); err != nil {
		return nil, err
	}
	// Connecting gives the socket its address, and lets nobody but the kernel send to it.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("connect netlink socket: %w", err)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("read address of netlink socket: %w", err)
	}
	sa, ok := self.(*unix.SockaddrNetlink)
	if !ok {
		return nil, fmt.Errorf("read address of netlink socket: got a %T", self)
	}
	return &Conn{fd: fd, port: sa.Pid, buf: make([]byte, bufferSize)}, nil
}

func setOptions(fd, rcvbuf int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf)
	if err != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcvbuf)
	}
	if err != nil {
		return fmt.Errorf("set netlink receive buffer: %w", err)
	}
	timeout := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("set netlink read timeout: %w", err)
	}
	// Errors with an explanation, and without a copy of the request. Both are since Linux 4.12.
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			return fmt.Errorf("set netlink option %d: %w", option, err)
		}
	}
	return nil
}
