package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// onePlugin runs plugins, one at a time: one that goes on after the driver was killed holds the lock until it and all that it has
// started have ended, since they inherit it. Else what is half done would be undone while it is still being done.
type onePlugin struct {
	invoke.DefaultExec
	lock string // a file
}

func newOnePlugin(stateDir string) *onePlugin {
	return &onePlugin{invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}, filepath.Join(stateDir, "plugin.lock")}
}

// ExecPlugin runs a plugin, in spite of a namespace that is not there yet, which portmap has no need of (CNI_NETNS_OVERRIDE).
func (e *onePlugin) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	lock, err := os.OpenFile(e.lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	for unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: another plugin goes on and on: %w", e.lock, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.Env, cmd.ExtraFiles = append(environ, "CNI_NETNS_OVERRIDE=TRUE"), []*os.File{lock}
	if err := cmd.Run(); err != nil {
		said := &types.Error{}
		if json.Unmarshal(stdout.Bytes(), said) == nil && said.Msg != "" {
			return nil, said
		}
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}
