package integration

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/overlayd/overlayd/integration/internal/proc"
)

// binDirEnv names the directory that holds the binaries under test. TestMain makes one and sets it unless the caller did; one
// that the caller names and that is not there is filled, and stays.
const binDirEnv = "OVERLAYD_BIN_DIR"

// parallelLabs is how many laboratories run at once: a laboratory is some ten processes, which wait for half a minute now and then;
// three took 40 % of two cores.
const parallelLabs = "4"

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
	proc.SweepDeadRuns(namePrefix)
	named := os.Getenv(binDirEnv)
	if _, err := os.Stat(named); named != "" && os.IsNotExist(err) {
		if err := os.MkdirAll(named, 0o755); err != nil {
			return 0, err
		}
		if err := buildAll(named); err != nil {
			return 0, err
		}
	}
	if named == "" {
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
	return proc.Build([][]string{
		{ours, "-o", filepath.Join(dir, "overlayd"), "../cmd/overlayd"},
		{ours, "-o", filepath.Join(dir, "overlayctl"), "../cmd/overlayctl"},
		{ours, "-o", filepath.Join(dir, "overlayd-docker"), "../cmd/overlayd-docker"},
		{ours, "-o", filepath.Join(dir, "overlayd-tun"), "../cmd/overlayd-tun"},
		{ours, "-o", filepath.Join(dir, "overlay"), "../cniplugin"},
		{ours, "-o", filepath.Join(dir, "overlayd-bgp"), "../cmd/overlayd-bgp"},
		{"-o", filepath.Join(dir, "wireguard-go"), "golang.zx2c4.com/wireguard"}, // for wg-quick, where the kernel has none
		{"-modfile=../tools.mod", "-o", dir, "github.com/containernetworking/cni/cnitool",
			cni + "main/bridge", cni + "main/loopback", cni + "main/ptp", cni + "ipam/host-local",
			cni + "meta/bandwidth", cni + "meta/portmap"},
	})
}

// bin is the path of a binary under test.
func bin(name string) string { return filepath.Join(os.Getenv(binDirEnv), name) }
