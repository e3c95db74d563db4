package challenge

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/netnstest"
)

func TestOpenNeedsCapability(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	// The thread dies after Do, and its capabilities with it.
	err := h.Do(func() error {
		if err := dropCapability(unix.CAP_NET_RAW); err != nil {
			t.Error(err)
		}
		_, err := Open(Mark)
		return err
	})
	if !errors.Is(err, unix.EPERM) || !errors.Is(err, os.ErrPermission) {
		t.Errorf("open: %v, want EPERM", err)
	}
}

func dropCapability(c int) error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&h, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << c
	return unix.Capset(&h, &data[0])
}

func TestOpenWithoutIPv6(t *testing.T) {
	h := netnstest.NewHost(t, "host")
	var s *Sender
	err := h.Do(func() (err error) {
		s, err = open(Mark, func(family int, mark uint32) (*socket, error) {
			if family == unix.AF_INET6 {
				return nil, os.NewSyscallError("socket", unix.EAFNOSUPPORT)
			}
			return openSocket(family, mark)
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("[::1]:1")
	if err := s.Send(v4, v4, 0); err != nil {
		t.Error(err)
	}
	if err := s.Send(v6, v6, 0); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("IPv6: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
