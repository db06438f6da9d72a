package extension

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mostOutput is how much of what a command prints is kept, in bytes.
const mostOutput = 64 << 10

// run is one run of a command.
type run struct {
	text  string   // the command
	vars  []string // NAME=value; they are put in for $NAME in the command, too
	stdin []byte
	as    *syscall.Credential // the user; nil: this process's
}

// do runs a command to its end, and returns what it printed. It is killed with all its children when ctx ends.
func (r run) do(ctx context.Context) (output string, err error) {
	hear, live, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer hear.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: append([]string{keeperName}, r.words()...), Env: r.environ(),
		Dir: "/", Stdin: bytes.NewReader(r.stdin), ExtraFiles: []*os.File{hear},
		// Signals of a terminal are for the daemon.
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if r.as != nil {
		cmd.SysProcAttr.Credential = r.as
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}
	}
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		live.Close()
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { live.Close() })
	cmd.WaitDelay = time.Second // should one have escaped that holds the output
	err = cmd.Wait()
	if stop() {
		live.Close()
	}
	output = strings.TrimSpace(string(out.kept))
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return output, errors.New("took too long, and was killed")
	case ctx.Err() != nil:
		return output, ctx.Err()
	case err != nil && output != "" && !errors.Is(err, exec.ErrWaitDelay):
		return output, fmt.Errorf("%w: %s", err, lastLine(output))
	}
	return output, err
}

// words are the command's: they are put together first, so that no value becomes several.
func (r run) words() []string {
	words := strings.Fields(r.text)
	for i, word := range words {
		words[i] = os.Expand(word, r.lookup)
	}
	return words
}

func (r run) lookup(name string) string {
	for _, v := range r.vars {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	if private(name) {
		return ""
	}
	return os.Getenv(name)
}

// private says whether a variable of the daemon's is not for commands: it is between it and systemd, or for it alone.
func private(name string) bool {
	switch name {
	case "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "MAINPID":
		return true
	}
	return strings.HasPrefix(name, "OVERLAYD_") || strings.HasPrefix(name, "WATCHDOG_") || strings.HasPrefix(name, "LISTEN_")
}

// environ is the daemon's, as flannel's commands have it, but for what is private.
func (r run) environ() (env []string) {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !private(name) {
			env = append(env, v)
		}
	}
	return append(env, r.vars...)
}

// lastLine is where most programs say what went wrong; of a long one the beginning.
func lastLine(output string) string {
	line := output[strings.LastIndexByte(output, '\n')+1:]
	return strings.ToValidUTF8(line[:min(len(line), 300)], "")
}

// limited keeps the beginning of what is written to it.
type limited struct{ kept []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.kept = append(l.kept, p[:min(len(p), mostOutput-len(l.kept))]...)
	return len(p), nil
}
