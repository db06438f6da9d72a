package policy

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/overlayd/overlayd/integration/internal/proc"
)

// binDirEnv names the directory that holds the binaries under test. TestMain fills one and sets it unless the caller did.
const binDirEnv = "OVERLAYD_BIN_DIR"

// allEnv, set, asks for all that make test-policy tests; make test is content with one case of each section.
const allEnv = "OVERLAYD_POLICY_ALL"

// everything tells whether all cases are wanted.
func everything() bool { return os.Getenv(allEnv) != "" }

const (
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
	proc.SweepDeadRuns(namePrefix)
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
	return proc.Build([][]string{
		{ours, "-o", filepath.Join(dir, "overlayd"), "../../cmd/overlayd"},
		{ours, "-o", filepath.Join(dir, "overlayctl"), "../../cmd/overlayctl"},
		{"-o", filepath.Join(dir, "overlay"), "../../cniplugin"},
		{"-modfile=../../tools.mod", "-o", dir, "github.com/containernetworking/cni/cnitool", cni + "meta/portmap"},
	})
}

// bin is the path of a binary under test.
func bin(name string) string { return filepath.Join(os.Getenv(binDirEnv), name) }
