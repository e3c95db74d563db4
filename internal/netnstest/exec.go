package netnstest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Start starts cmd inside the host's namespace; call cmd.Wait as usual. Don't set Pdeathsig:
// it would fire at once, as the thread that starts cmd ends.
func (h *Host) Start(cmd *exec.Cmd) error {
	return h.Do(cmd.Start)
}

// Output runs a program inside the namespace and returns its stdout. The error holds its stderr.
func (h *Host) Output(ctx context.Context, name string, args ...string) (string, error) {
	return h.Pipe(ctx, "", name, args...)
}

// Run is Output for a program whose stdout nobody needs.
func (h *Host) Run(ctx context.Context, name string, args ...string) error {
	_, err := h.Output(ctx, name, args...)
	return err
}

// Pipe is Output with input on stdin: h.Pipe(ctx, ruleset, "nft", "-f", "-").
func (h *Host) Pipe(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("run %s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// Sysctl reads a value of /proc/sys/net as the host sees it, without the newline. The name is written with dots
// or, where an interface name has a dot in it, with slashes.
func (h *Host) Sysctl(name string) (string, error) {
	var data []byte
	err := h.Do(func() (err error) {
		data, err = os.ReadFile(sysctlPath(name))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// SetSysctl writes a value of /proc/sys/net for this host only.
func (h *Host) SetSysctl(name, value string) error {
	err := h.Do(func() error {
		// os.WriteFile would ask to create the file, and hide a wrong name behind EACCES.
		f, err := os.OpenFile(sysctlPath(name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteString(value)
		return err
	})
	if err != nil {
		return fmt.Errorf("write sysctl %s: %w", name, err)
	}
	return nil
}

func sysctlPath(name string) string {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	return "/proc/sys/" + name
}
