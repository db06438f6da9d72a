package policy

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// binDirEnv names the directory that holds the binaries under test. TestMain fills one and sets it unless the caller did.
const binDirEnv = "OVERLAYD_BIN_DIR"

// allEnv, set, asks for all that make test-policy tests; make test is content with one case of each section.
const allEnv = "OVERLAYD_POLICY_ALL"

// everything tells whether all cases are wanted.
func everything() bool { return os.Getenv(allEnv) != "" }

const (
	netnsDir   = "/run/netns"
	namePrefix = "ovlpol" // of every namespace made here, followed by the pid
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration/policy:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return m.Run(), nil // every test that needs root skips, and says why
	}
	sweepDeadRuns()
	if os.Getenv(binDirEnv) == "" {
		dir, err := os.MkdirTemp("", "overlayd-bin-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		if err := buildAll(dir); err != nil {
			return 0, err
		}
		if err := os.Setenv(binDirEnv, dir); err != nil {
			return 0, err
		}
	}
	code := m.Run()
	total.print()
	return code, nil
}

// buildAll puts our binaries and the pinned foreign ones into dir: ours with the race detector, but not to be measured.
func buildAll(dir string) error {
	const cni = "github.com/containernetworking/plugins/plugins/"
	bench := flag.Lookup("test.bench").Value.String() != ""
	ours := "-race=" + strconv.FormatBool(!bench)
	for _, args := range [][]string{
		{ours, "-o", filepath.Join(dir, "overlayd"), "../../cmd/overlayd"},
		{ours, "-o", filepath.Join(dir, "overlayctl"), "../../cmd/overlayctl"},
		{"-o", filepath.Join(dir, "overlay"), "../../cniplugin"},
		{"-modfile=../../tools.mod", "-o", dir, "github.com/containernetworking/cni/cnitool", cni + "meta/portmap"},
	} {
		out, err := exec.Command("go", append([]string{"build"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// bin is the path of a binary under test.
func bin(name string) string { return filepath.Join(os.Getenv(binDirEnv), name) }

// sweepDeadRuns deletes the namespaces of runs that were killed before they could tidy up.
func sweepDeadRuns() {
	entries, _ := os.ReadDir(netnsDir) // not there: nothing to sweep
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), namePrefix)
		pid, _, _ := strings.Cut(rest, "-")
		if n, err := strconv.Atoi(pid); !ours || err != nil || n <= 0 {
			continue
		}
		if _, err := os.Stat(filepath.Join("/proc", pid)); os.IsNotExist(err) {
			_ = exec.Command("ip", "netns", "delete", e.Name()).Run()
		}
	}
}
