package command

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"curfew/ctpolicy"
	"curfew/internal/netnstest"
	"curfew/rules"
)

// writeConfig writes a file in one step, as an editor does.
func writeConfig(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestReload changes the file of a running reaper: to a good one, to a broken one, and to a good one with another mark.
func TestReload(t *testing.T) {
	h := netnstest.NewHost(t, "reload")
	path := filepath.Join(t.TempDir(), "curfew.yaml")
	policy := "policies:\n- {name: web, port: %d, max_age: 1h}\n"
	writeConfig(t, path, fmt.Sprintf(policy, 80))
	log := &watcher{word: "msg=running", seen: make(chan struct{})}
	cmd := exec.Command("curfew", "run", "-c", path)
	cmd.Stdout, cmd.Stderr = log, log
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	awaitLog := func(text string) {
		t.Helper()
		eventually(t, text, func() bool { return strings.Contains(log.text(), text) })
	}
	reload := func(text string) {
		t.Helper()
		writeConfig(t, path, text)
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	count := func(text string) int { return strings.Count(log.text(), text) }

	awaitLog("msg=running")
	awaitLog("policy=web port=80 ")

	reload(fmt.Sprintf(policy, 81))
	awaitLog("policy=web port=81 ")
	awaitLog("msg=reloaded")

	reload("policies:\n- {port: 82, max_agee: 1h}\n- {prot: 83, max_age: 1h}\n")
	awaitLog(path + ":2:14: max_agee: unknown key, did you mean max_age?")
	awaitLog(path + ":3:4: prot: unknown key, did you mean port?")
	if got := count("not reloaded: the old limits stay in force"); got != 2 {
		t.Errorf("%d lines say that nothing was reloaded, want 2:\n%s", got, log.text())
	}
	if in := installedOn(t, h); len(in.Policies) != 1 || ctpolicy.FormatPorts(in.Policies[0].Ports) != "81" {
		t.Errorf("installed is %v", in.Policies)
	}

	reload(fmt.Sprintf(policy, 84) + "mark: 0x77000000\n")
	awaitLog("policy=web port=84 ")
	if in := installedOn(t, h); in.Mark != 0x77000000 {
		t.Errorf("the mark is %#x", in.Mark)
	}

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	awaitLog("no such file or directory")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Errorf("%v\n%s", err, log.text())
	}
}

func installedOn(t *testing.T, h *netnstest.Host) (in *rules.Installed) {
	t.Helper()
	err := h.Do(func() (err error) {
		in, err = rules.Read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestCheckCounts has a connection that one file would end now, another one later, and a third one leave alone.
func TestCheckCounts(t *testing.T) {
	h := netnstest.NewHost(t, "check")
	server := h.Listen(t, "tcp4", "127.0.0.1:0")
	if r := runOn(t, h, "apply", "--port", fmt.Sprint(server.Port()), "--max-age", "1h"); r.code != ExitDone {
		t.Fatal(r)
	}
	client := h.Dial(t, "tcp4", server.Addr().String(), netnstest.DialOptions{})
	server.Conn(t, client)
	before := rulesOn(t, h)
	path := filepath.Join(t.TempDir(), "curfew.yaml")
	says := func(keys, want string) bool {
		t.Helper()
		writeConfig(t, path, fmt.Sprintf("policies:\n- {name: echo, port: %d, %s}\n- {name: other, port: 9, idle: 1s}\n", server.Port(), keys))
		r := runOn(t, h, "check", "-c", path)
		if r.code != ExitDone || r.stderr != "" || !strings.Contains(r.stdout, "  other: 0 connections, 0 would end now\n") {
			t.Fatal(r)
		}
		return strings.Contains(r.stdout, "  echo: "+want+"\n")
	}
	for keys, want := range map[string]string{
		"max_age: 1h":                         "1 connection, 0 would end now",
		"max_per_source: 1":                   "1 connection, 0 would end now",
		"max_age: 1s, direction: outbound":    "0 connections, 0 would end now",
		"max_age: 1s, except: 127.0.0.1":      "0 connections, 0 would end now",
		"idle: 1s, from: 10.0.0.0/8":          "0 connections, 0 would end now",
		"max_age: 1h, mode: report":           "1 connection, 0 would end now in mode enforce",
		"max_age: 1h}\n- {port: 7, idle: 10s": "1 connection, 0 would end now",
	} {
		if !says(keys, want) {
			t.Errorf("%s: not %s", keys, want)
		}
	}
	eventually(t, "the connection is a second old", func() bool { return says("max_age: 1s", "1 connection, 1 would end now") })
	if !says("max_age: 1s, mode: report", "1 connection, 1 would end now in mode enforce") {
		t.Error("mode report ends nothing by itself")
	}
	if after := rulesOn(t, h); after != before || !client.Alive() {
		t.Errorf("it changed something: open %v\n%s\n%s", client.Alive(), before, after)
	}
}
