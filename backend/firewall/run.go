package firewall

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// ErrHangs is why a command was ended: the cause of what ended its context.
var ErrHangs = errors.New("hangs")

// Exec runs a command of the firewall and returns what it prints. The error says what it complained of. When ctx ends, so do
// the command and all that it has begun.
func Exec(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what has left the group, and holds the pipes
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	begin := time.Now()
	out, err := cmd.Output()
	switch {
	case err == nil:
		return string(out), nil
	case context.Cause(ctx) == ErrHangs:
		return "", fmt.Errorf("%s %w: ended after %v", name, ErrHangs, time.Since(begin).Round(time.Second))
	}
	said := strings.ReplaceAll(strings.TrimSpace(stderr.String()), "\n", "; ")
	return "", fmt.Errorf("%s: %w: %s", name, err, said)
}
