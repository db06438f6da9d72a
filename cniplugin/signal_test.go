package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A runtime that gives up ends its plugin; what the delegate has begun must not stay.
func TestTerminated(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	plugins, began, undone := t.TempDir(), filepath.Join(h.dir, "began"), filepath.Join(h.dir, "undone")
	slow := `#!/bin/sh
case $CNI_COMMAND in
ADD) : >` + began + `; exec sleep 60 ;;
DEL) : >` + undone + ` ;;
esac
`
	if err := os.WriteFile(filepath.Join(plugins, "slow"), []byte(slow), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+h.ns, filepath.Join(h.bin, "overlay"))
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + plugins + ":" + h.bin, "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_IFNAME=eth0",
		"CNI_NETNS=" + h.addNamespace(t, "c1"),
	}
	cmd.Stdin = bytes.NewReader(h.conf(map[string]any{"delegate": map[string]any{"type": "slow"}}))
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if _, err := os.Stat(began); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "slow ADD: ended before it was done") {
		t.Errorf("%v: %s", err, &out)
	}
	if _, err := os.Stat(undone); err != nil {
		t.Errorf("the delegate was not told to undo: %v", err)
	}
	h.wantClean(t)
}
