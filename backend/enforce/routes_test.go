package enforce

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// unseenEnv is set where the kernel is to be as one without br_netfilter.
const unseenEnv = "OVERLAYD_NO_BR_NETFILTER"

// TestWithoutBridgeNetfilter has what packets do be the same on a kernel that shows no bridge's traffic to nftables. One that has
// it built in hides that.
func TestWithoutBridgeNetfilter(t *testing.T) {
	t.Parallel()
	if os.Getenv(unseenEnv) != "" {
		return
	}
	cmd := exec.Command("unshare", "--mount", os.Args[0], "-test.v", "-test.run", "^Test", "-test.parallel=2")
	cmd.Env = append(os.Environ(), unseenEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%d tests", strings.Count(string(out), "\n--- PASS"))
}
