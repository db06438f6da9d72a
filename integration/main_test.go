package integration

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

// binDirEnv names the directory that holds the binaries under test. TestMain fills one and sets it unless the
// caller did.
const binDirEnv = "OVERLAYD_BIN_DIR"

// parallelLabs is how many laboratories run at once: a laboratory is some ten processes, and more of them than
// this on two cores only wait for each other.
const parallelLabs = "3"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == clockLauncher {
		fmt.Fprintln(os.Stderr, "integration:", launchUnderClock(os.Args[2:]))
		os.Exit(1)
	}
	if len(os.Args) == 5 && os.Args[1] == nomadClient {
		if err := runNomadClient(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, "integration:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return m.Run(), nil // every test skips, and says why
	}
	if !flagGiven("test.parallel") {
		if err := flag.Set("test.parallel", parallelLabs); err != nil {
			return 0, err
		}
	}
	sweepDeadRuns()
	if os.Getenv(binDirEnv) == "" {
		dir, err := os.MkdirTemp("", "overlayd-bin-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // other users run them too
			return 0, err
		}
		if err := buildAll(dir); err != nil {
			return 0, err
		}
		if err := os.Setenv(binDirEnv, dir); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}

func flagGiven(name string) bool {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

// buildAll puts our binaries and the pinned foreign ones into dir: ours with the race detector, but not to be measured.
func buildAll(dir string) error {
	const cni = "github.com/containernetworking/plugins/plugins/"
	ours := "-race=" + strconv.FormatBool(!flagGiven("test.bench"))
	for _, args := range [][]string{
		{ours, "-o", filepath.Join(dir, "overlayd"), "../cmd/overlayd"},
		{ours, "-o", filepath.Join(dir, "overlayctl"), "../cmd/overlayctl"},
		{ours, "-o", filepath.Join(dir, "overlay"), "../cniplugin"},
		{"-modfile=../tools.mod", "-o", dir, "github.com/containernetworking/cni/cnitool",
			cni + "main/bridge", cni + "main/loopback", cni + "main/ptp", cni + "ipam/host-local",
			cni + "meta/bandwidth", cni + "meta/portmap"},
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

// sweepDeadRuns deletes the namespaces of runs that were killed before they could tidy up: a test binary that
// runs into its timeout panics, and no cleanup runs.
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
