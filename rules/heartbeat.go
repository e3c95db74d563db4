package rules

import (
	"errors"
	"fmt"
	"os"
	"strconv"
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
	// Since is when the reaper started; the zero time when nobody says.
	Since time.Time
	// Left is how long the heartbeat lasts without another Beat.
	Left time.Duration
	// Seen tells that there has been a reaper since the table was installed, and Quiet for how long there has been none.
	Seen  bool
	Quiet time.Duration
}

// Running tells whether the process that holds the heartbeat still exists; after a SIGKILL the heartbeat outlives it.
func (r Reaper) Running() bool {
	if !r.Alive || r.PID == 0 {
		return r.Alive
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.PID))
	return err == nil && strings.TrimSpace(string(comm)) != ""
}

const (
	reaperComment = "reaper pid "
	sinceComment  = " since "
	// beatKept is how long it is known when the last reaper was there.
	beatKept = 365 * 24 * time.Hour
)

// reaperNote says whose heartbeat it is.
func reaperNote(pid int, since time.Time) string {
	return fmt.Sprintf("%s%d%s%s", reaperComment, pid, sinceComment, since.UTC().Format(time.RFC3339))
}

func (r *Reaper) parseNote(note string) {
	rest, _ := strings.CutPrefix(note, reaperComment)
	pid, since, _ := strings.Cut(rest, sinceComment)
	r.PID, _ = strconv.Atoi(pid)
	r.Since, _ = time.Parse(time.RFC3339, since)
}

func (in *Installed) readAlive(conn *nftables.Conn) error {
	elements, err := conn.GetSetElements(aliveSet())
	if err != nil {
		return err
	}
	last, err := conn.GetSetElements(beatSet())
	if err != nil {
		return err
	}
	for _, e := range last {
		in.Reaper.Seen = true
		in.Reaper.Quiet = max(0, beatKept-e.Expires-Heartbeat)
	}
	for _, e := range elements {
		if len(e.Key) > 0 && e.Key[0] == unix.IPPROTO_TCP {
			in.Reaper.Alive, in.Reaper.Left, in.Reaper.Quiet = true, e.Expires, 0
			in.Reaper.parseNote(e.Comment)
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
func Beat(pid int, since time.Time) error {
	return changeAlive(func(conn *nftables.Conn) error {
		note := reaperNote(pid, since)
		return errors.Join(refresh(conn, aliveSet(), Heartbeat, note), refresh(conn, beatSet(), beatKept, note))
	})
}

// refresh gives a set of one element its full time again. Before Linux 6.12 adding an element again does not refresh it, and
// deleting one that is not there fails.
func refresh(conn *nftables.Conn, set *nftables.Set, timeout time.Duration, who string) error {
	e := tcpElement(timeout, who)
	return errors.Join(conn.SetAddElements(set, e), conn.SetDeleteElements(set, e), conn.SetAddElements(set, e))
}

// StopBeat wakes the fallback now. A reaper that stops has been there until now.
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
