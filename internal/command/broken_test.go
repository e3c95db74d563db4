package command

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"curfew/ctpolicy"
	"curfew/ctpolicy/config"
	"curfew/internal/netnstest"
	"curfew/reaper/challenge"
)

// A ran is what a command line did.
type ran struct {
	code           int
	stdout, stderr string
}

// runOn runs a command line on a host.
func runOn(t *testing.T, h *netnstest.Host, args ...string) (r ran) {
	t.Helper()
	var stdout, stderr strings.Builder
	err := h.Do(func() error {
		r.code = Run(context.Background(), args, &Env{
			Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr, Clock: ctpolicy.SystemClock{}, Config: filepath.Join(t.TempDir(), "none"),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.stdout, r.stderr = stdout.String(), stderr.String()
	return r
}

// TestBrokenFiles gives each broken file to check and apply: both tell all of its errors, and change nothing.
func TestBrokenFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "ctpolicy", "config", "testdata", "broken", "*.yaml"))
	if err != nil || len(files) < 100 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	h := netnstest.NewHost(t, "broken")
	apply := runOn(t, h, "apply", "--port", "4444", "--max-age", "1h")
	if apply.code != ExitDone {
		t.Fatal(apply)
	}
	before := rulesOn(t, h)
	for _, file := range files {
		_, err := config.Read(file)
		want := "curfew: " + strings.ReplaceAll(err.Error(), "\n", "\ncurfew: ") + "\n"
		for _, name := range []string{"check", "apply"} {
			if r := runOn(t, h, name, "-c", file); r.code != ExitUsage || r.stdout != "" || r.stderr != want {
				t.Errorf("%s -c %s: exit code %d, printed %q, said\n%swant\n%s", name, file, r.code, r.stdout, r.stderr, want)
			}
		}
		if after := rulesOn(t, h); after != before {
			t.Fatalf("%s: the rules changed from\n%s\nto\n%s", file, before, after)
		}
	}
}

// rulesOn leaves out what passes by itself.
func rulesOn(t *testing.T, h *netnstest.Host) string {
	t.Helper()
	cmd := exec.Command("nft", "-s", "list", "ruleset")
	var out strings.Builder
	cmd.Stdout = &out
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestMark compares the two places that know the default packet mark: the file's reader must not know the reaper.
func TestMark(t *testing.T) {
	if config.New().Mark != challenge.Mark {
		t.Errorf("%#x is not %#x", config.New().Mark, challenge.Mark)
	}
}
