package netnstest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperVar turns the test binary into one of the helpers below.
const helperVar = "CURFEW_TEST_HELPER"

var helpers = map[string]func() int{
	"exit": func() int {
		fmt.Print("uid ", os.Geteuid(), " inside ", Inside())
		return 7
	},
	"abort": func() int {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	},
	"sleep": func() int {
		fmt.Print("sleeping")
		time.Sleep(time.Minute)
		return 0
	},
}

func TestMain(m *testing.M) {
	if helper, ok := helpers[os.Getenv(helperVar)]; ok {
		os.Exit(helper())
	}
	Main(m)
}

func isolateHelper(ctx context.Context, t *testing.T, helper string) (int, string) {
	t.Helper()
	t.Setenv(helperVar, helper)
	var out bytes.Buffer
	code, err := Isolate(ctx, nil, nil, &out, &out)
	if err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return code, out.String()
}

func TestIsolatePassesOutputAndExitCode(t *testing.T) {
	if code, out := isolateHelper(t.Context(), t, "exit"); code != 7 || out != "uid 0 inside true" {
		t.Fatalf("exit code %d, output %q", code, out)
	}
}

func TestIsolateReportsSignals(t *testing.T) {
	if code, out := isolateHelper(t.Context(), t, "abort"); code != 128+9 {
		t.Fatalf("exit code %d, want 137: %s", code, out)
	}
}

func TestIsolateEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	code, out := isolateHelper(ctx, t, "sleep")
	if code != 128+15 || time.Since(start) > 30*time.Second || !strings.Contains(out, "sleeping") {
		t.Fatalf("exit code %d after %v: %s", code, time.Since(start), out)
	}
}

func TestRunsInsideAsRoot(t *testing.T) {
	if !Inside() {
		t.Fatal("Inside is false in a test binary started by Main")
	}
	if os.Geteuid() != 0 {
		t.Fatalf("uid %d inside, want 0", os.Geteuid())
	}
}

func TestInsideDoesNotTrustTheVariableAlone(t *testing.T) {
	ino, err := namespaceID()
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"", "x", uitoa(ino)} {
		t.Setenv(outsideVar, value)
		if Inside() {
			t.Errorf("Inside is true with %s=%q in namespace %d", outsideVar, value, ino)
		}
	}
}
