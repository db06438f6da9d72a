package proc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
)

// NetnsDir is where network namespaces have their names.
const NetnsDir = "/run/netns"

// Do calls f on a thread that is inside a network namespace. Sockets made by f stay in it.
func Do(name string, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return err
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(err) // the thread would carry on in the wrong namespace
		}
	}()
	return f()
}

// SweepDeadRuns deletes the namespaces of runs that were killed before they could tidy up, whose names are a prefix, the run's
// pid, and more: a test binary that runs into its timeout panics, and no cleanup runs.
func SweepDeadRuns(prefix string) {
	entries, _ := os.ReadDir(NetnsDir) // not there: nothing to sweep
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		pid, _, _ := strings.Cut(rest, "-")
		if n, err := strconv.Atoi(pid); !ours || err != nil || n <= 0 {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", pid)); os.IsNotExist(err) {
			_ = exec.Command("ip", "netns", "delete", e.Name()).Run()
		}
	}
}

// Build runs go build with each of some lists of arguments.
func Build(builds [][]string) error {
	for _, args := range builds {
		out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}
