package rules

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"curfew/internal/nl"
)

const nftMessages = unix.NFNL_SUBSYS_NFTABLES << 8

// about is a message about something of a table.
func aboutPart(family byte, table, name string) []byte {
	b := appendAttr([]byte{family, 0, 0, 0}, attrTable, []byte(table+"\x00"))
	return appendAttr(b, unix.NFTA_SET_ELEM_LIST_SET, []byte(name+"\x00"))
}

func newGeneration(tid uint32, name string) []byte {
	b := nl.AppendUint32([]byte{0, 0, 0, 0}, unix.NFTA_GEN_ID, 7)
	b = nl.AppendUint32(b, unix.NFTA_GEN_PROC_PID, tid)
	return appendAttr(b, unix.NFTA_GEN_PROC_NAME, []byte(name+"\x00"))
}

func TestWatched(t *testing.T) {
	for _, c := range []struct {
		message     uint16
		family      byte
		table, name string
		want        bool
	}{
		{unix.NFT_MSG_DELTABLE, unix.NFPROTO_INET, "curfew", "", true},
		{unix.NFT_MSG_NEWRULE, unix.NFPROTO_INET, "curfew", "input", true},
		{unix.NFT_MSG_NEWRULE, unix.NFPROTO_INET, "curfew", "alive", true},
		{unix.NFT_MSG_NEWRULE, unix.NFPROTO_INET, "curfew2", "input", false},
		{unix.NFT_MSG_NEWRULE, unix.NFPROTO_IPV4, "curfew", "input", false},
		{unix.NFT_MSG_DELSET, unix.NFPROTO_INET, "curfew", "alive", true},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "alive", false},
		{unix.NFT_MSG_DELSETELEM, unix.NFPROTO_INET, "curfew", "flows4", false},
		{unix.NFT_MSG_DELSETELEM, unix.NFPROTO_INET, "curfew", "closed6", false},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "held", false},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "adopt", false},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "heartbeat", false},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "ldap-max-source4", false},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "ldap-new-6", false},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "a-max-b-from4", true},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "end-by-port", true},
		{unix.NFT_MSG_NEWSETELEM, unix.NFPROTO_INET, "curfew", "flows44", true},
	} {
		var w watched
		if _, ok, err := w.message(nftMessages|c.message, aboutPart(c.family, c.table, c.name)); ok || err != nil {
			t.Errorf("%+v: %v, %v before the generation", c, ok, err)
		}
		change, ok, err := w.message(nftMessages|unix.NFT_MSG_NEWGEN, newGeneration(42, "nft"))
		if ok != c.want || err != nil || ok && change != (Change{PID: 42, Process: "nft"}) {
			t.Errorf("%+v: %+v, %v, %v", c, change, ok, err)
		}
		if _, ok, err := w.message(nftMessages|unix.NFT_MSG_NEWGEN, newGeneration(42, "nft")); ok || err != nil {
			t.Errorf("%+v: next generation: %v, %v", c, ok, err)
		}
	}
}

func TestWatchedIsStrict(t *testing.T) {
	var w watched
	for _, b := range [][]byte{nil, {1, 0, 0}, {1, 0, 0, 0, 3, 0, 1, 0}} {
		if _, _, err := w.message(nftMessages|unix.NFT_MSG_NEWRULE, b); !errors.Is(err, nl.ErrMalformed) {
			t.Errorf("%v: %v", b, err)
		}
		w.touched = true
		if _, _, err := w.message(nftMessages|unix.NFT_MSG_NEWGEN, b); !errors.Is(err, nl.ErrMalformed) {
			t.Errorf("generation %v: %v", b, err)
		}
	}
	if _, ok, err := w.message(unix.NFNL_SUBSYS_CTNETLINK<<8, nil); ok || err != nil {
		t.Errorf("of another subsystem: %v, %v", ok, err)
	}
}

func TestOtherTablesCostNoMemory(t *testing.T) {
	var w watched
	b := aboutPart(unix.NFPROTO_INET, "filter", "blocked")
	if n := testing.AllocsPerRun(100, func() { _, _, _ = w.message(nftMessages|unix.NFT_MSG_NEWSETELEM, b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestProcessOfThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := unix.Gettid()
	comm, err := os.ReadFile("/proc/thread-self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if pid := processOf(tid, strings.TrimSpace(string(comm))); pid != os.Getpid() {
		t.Errorf("process of thread %d is %d, want %d", tid, pid, os.Getpid())
	}
	if pid := processOf(tid, "other"); pid != tid {
		t.Errorf("of a thread with another name: %d, want %d", pid, tid)
	}
}

// FuzzWatched reads any message, and is a message about our table or none.
func FuzzWatched(f *testing.F) {
	f.Add(uint16(nftMessages|unix.NFT_MSG_NEWSETELEM), aboutPart(unix.NFPROTO_INET, TableName, "alive"))
	f.Add(uint16(nftMessages|unix.NFT_MSG_DELRULE), aboutPart(unix.NFPROTO_INET, TableName, "input"))
	f.Add(uint16(nftMessages|unix.NFT_MSG_NEWGEN), newGeneration(1, "nft"))
	f.Fuzz(func(t *testing.T, typ uint16, payload []byte) {
		var w watched
		if _, ok, _ := w.message(typ, payload); ok {
			t.Fatal("a change out of nothing")
		}
		if w.touched && !bytes.Contains(payload, []byte(TableName)) {
			t.Fatal("touched by a message that doesn't name the table")
		}
		w.touched = true
		if change, ok, err := w.message(typ, payload); err != nil && ok {
			t.Fatalf("%+v with %v", change, err)
		}
	})
}
