package rules

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Reaper says whether a reaper's heartbeat is in the table.
type Reaper struct {
	Alive bool
	// PID is the reaper's process, 0 for another holder of the heartbeat, such as an apply that is adopting flows.
	PID int
	// Left is how long the heartbeat lasts without another Beat.
	Left time.Duration
}

// Running tells whether the process that holds the heartbeat still exists; after a SIGKILL the heartbeat outlives it.
func (r Reaper) Running() bool {
	if !r.Alive || r.PID == 0 {
		return r.Alive
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.PID))
	return err == nil && strings.TrimSpace(string(comm)) != ""
}

const reaperComment = "reaper pid "

func (in *Installed) readAlive(conn *nftables.Conn) error {
	elements, err := conn.GetSetElements(aliveSet())
	if err != nil {
		return err
	}
	for _, e := range elements {
		if len(e.Key) > 0 && e.Key[0] == unix.IPPROTO_TCP {
			in.Reaper = Reaper{Alive: true, Left: e.Expires}
			_, _ = fmt.Sscanf(e.Comment, reaperComment+"%d", &in.Reaper.PID)
		}
	}
	return nil
}

// readAdopt finds out how long flows are still picked up.
func (in *Installed) readAdopt(conn *nftables.Conn) error {
	elements, err := conn.GetSetElements(adoptSet())
	for _, e := range elements {
		in.Adopt = e.Expires
	}
	return err
}

// Beat puts the fallback to sleep for another Heartbeat. It answers ErrNotInstalled when the table is gone.
func Beat(pid int) error {
	return changeAlive(func(conn *nftables.Conn) error {
		// Before Linux 6.12 adding an element again does not refresh it, and deleting one that is not there fails.
		e := tcpElement(Heartbeat, fmt.Sprintf(reaperComment+"%d", pid))
		return errors.Join(conn.SetAddElements(aliveSet(), e), conn.SetDeleteElements(aliveSet(), e),
			conn.SetAddElements(aliveSet(), e))
	})
}

// StopBeat wakes the fallback now.
func StopBeat() error {
	return changeAlive(func(conn *nftables.Conn) error {
		e := tcpElement(Heartbeat, "")
		return errors.Join(conn.SetAddElements(aliveSet(), e), conn.SetDeleteElements(aliveSet(), e))
	})
}

func changeAlive(change func(*nftables.Conn) error) error {
	library.Lock()
	defer library.Unlock()
	conn, err := dial()
	if err != nil {
		return err
	}
	if err := change(conn); err != nil {
		return fmt.Errorf("change the heartbeat: %w", err)
	}
	if err := conn.Flush(); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return ErrNotInstalled
		}
		return fmt.Errorf("change the heartbeat: %w", err)
	}
	return nil
}
