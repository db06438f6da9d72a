package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/cmd/internal/api"
)

// pinDir is where the unit has the programs of the fast path pinned for a daemon that may load none; it finds them in its run
// directory.
const pinDir = "/sys/fs/bpf/overlayd"

// unloaded is the file in the run directory that says why they are not.
func (c *config) unloaded() string { return filepath.Join(c.runDir, "fast-path.unloaded") }

// loadFastPath loads and pins the programs, if they may be used. That they cannot be is nothing to end with: the slow way is
// there.
func (c *config) loadFastPath(w io.Writer) error {
	var err error
	if c.fastPath == api.FastPathOff {
		err = errors.Join(errors.New("the setting fast-path was off when the daemon was started"), fastpath.Remove(pinDir))
	} else {
		err = fastpath.Load(pinDir)
	}
	if err == nil {
		return removeFile(c.unloaded())
	}
	err = explainBPF(err)
	why := strings.ReplaceAll(err.Error(), "\n", "; ")
	fmt.Fprintln(w, "packets go the slow way:", why)
	return c.leave(why)
}

// leave writes why nothing is loaded, for the daemon to find. The directory is the daemon's user's, who may have put anything there.
func (c *config) leave(why string) error {
	var dir unix.Stat_t
	if err := unix.Stat(c.runDir, &dir); err != nil {
		return fmt.Errorf("run directory %s: %w", c.runDir, err)
	}
	f, err := renameio.NewPendingFile(c.unloaded(), renameio.WithStaticPermissions(0o644), renameio.WithTempDir(c.runDir))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	_, err = f.WriteString(why)
	if err = errors.Join(err, f.Chown(int(dir.Uid), int(dir.Gid))); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

// newFastPath takes the programs that were loaded for this process, if it may load none.
func (c *config) newFastPath(cfg fastpath.Config) (*fastpath.Path, error) {
	if !may(unix.CAP_SYS_ADMIN) && !(may(unix.CAP_BPF) && may(unix.CAP_PERFMON)) {
		cfg.Pinned = filepath.Join(c.runDir, "bpf")
	}
	path, err := fastpath.New(cfg)
	if cfg.Pinned != "" && errors.Is(err, fs.ErrNotExist) {
		if why, readErr := os.ReadFile(c.unloaded()); readErr == nil {
			return nil, errors.New(string(why))
		}
		return nil, errors.New("loading its programs takes root, or CAP_BPF and CAP_PERFMON; the unit of the package has them loaded")
	}
	return path, explainBPF(err)
}

// explainBPF adds to an error of loading or using programs what on this host forbids it.
func explainBPF(err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	read := func(file string) string { text, _ := os.ReadFile(file); return strings.TrimSpace(string(text)) }
	if disabled := read("/proc/sys/kernel/unprivileged_bpf_disabled"); disabled != "" && disabled != "0" {
		err = fmt.Errorf("%w (kernel.unprivileged_bpf_disabled is %s, which before Linux 5.19 leaves bpf to root)", err, disabled)
	}
	if lockdown := read("/sys/kernel/security/lockdown"); lockdown != "" && !strings.Contains(lockdown, "[none]") {
		err = fmt.Errorf("%w (the kernel is locked down: %s)", err, lockdown)
	}
	return err
}

// may says whether the process has a capability.
func may(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[capability/32].Effective>>(capability%32)&1 == 1
}

func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
