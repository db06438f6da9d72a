package integration

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/integration/internal/proc"
)

// slow is how many times as long as elsewhere everything takes on this machine: in a guest of make test-kernels without KVM,
// which says so by OVERLAYD_SLOW. Packets are sent so much more rarely there, and waits are longer; what is judged stays.
var slow = func() time.Duration {
	n, _ := strconv.Atoi(os.Getenv("OVERLAYD_SLOW"))
	return time.Duration(max(n, 1))
}()

// patience bounds every wait. It says when a test gives up, never whether something was fast enough.
var patience = slow * 60 * time.Second

func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	proc.Eventually(t, patience, what, f)
}

// run runs a command outside every node; a failure ends the test.
func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func tail(s string, n int) string { return proc.Tail(s, n) }
