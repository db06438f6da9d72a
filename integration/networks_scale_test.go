package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestManyNetworks has two hosts in twenty networks besides the unnamed one: all are joined, the first and the last are apart and
// whole, and a restart finds them as they were.
func TestManyNetworks(t *testing.T) {
	t.Parallel()
	lab, _, hosts := severalNetworks(t, 2)
	const count = 20 // eighty are joined in 16 s, where nothing else runs
	for i := range count {
		name := fmt.Sprintf("n%d", i)
		lab.putNetwork(name, vxlanOf(fmt.Sprintf("10.%d.0.0/16", 100+i), 100+i))
	}
	begun := time.Now()
	startAll(t, hosts, "--networks=all")
	joined := func(h *Host) {
		t.Helper()
		eventually(t, h.Name+" is in all", func() error {
			s, err := h.status()
			if err != nil {
				return err
			}
			ready := 0
			for _, n := range s.Networks {
				if n.Ready && len(n.Peers) == 1 && n.Kernel.InStep {
					ready++
				}
			}
			if ready != count || !s.Ready {
				return fmt.Errorf("%d of %d are ready: %s", ready, count, s.Stage)
			}
			return nil
		})
	}
	for _, h := range hosts {
		joined(h)
	}
	t.Logf("joined after %s", time.Since(begun))
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", hosts[0].Daemon.Pid()))
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "Threads") {
			t.Log(strings.TrimSpace(line))
		}
	}
	first, last := hosts[0].NewContainerIn("n0"), hosts[0].NewContainerIn("n9")
	there := hosts[1].NewContainerIn("n9")
	reach(t, last, there, 1450)
	apart(t, first, last)
	apart(t, first, there)
	t.Logf("rules that keep them apart: %d", strings.Count(hosts[0].Exec("nft", "list", "chain", "inet", "overlayd", "apart"), " drop"))
	hosts[0].Overlayctl("network", "peer", "n0", "n9")
	eventually(t, "peered", func() error {
		if !first.reaches(last) {
			return errors.New("no")
		}
		return nil
	})
	hosts[0].Daemon.Kill()
	begun = time.Now()
	hosts[0].Start("--networks=all")
	joined(hosts[0])
	t.Logf("after a restart: %s", time.Since(begun))
	reach(t, last, there, 1450)
}
