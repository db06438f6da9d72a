package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// backlogDrops is how many packets the kernel has dropped because a CPU's queue was full: of all namespaces together,
// so that a benchmark elsewhere on the machine costs packets here. It is the second column of softnet_stat.
func backlogDrops(t testing.TB) (sum uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var processed, dropped uint64
		if _, err := fmt.Sscanf(line, "%x %x", &processed, &dropped); err != nil {
			t.Fatalf("softnet_stat: %v in %q", err, line)
		}
		sum += dropped
	}
	return sum
}
