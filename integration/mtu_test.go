package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestSmallerMTUNamesContainers makes the network's MTU smaller. A container keeps the one that it was attached with, and
// overlayctl status says which; packets to it pass all the same, for the host tells who sends them.
func TestSmallerMTUNamesContainers(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	m := hosts[0].mount()
	old, far := lab.node("old"), hosts[1].NewContainer()
	id := m.attach(old, "")
	status := func() string {
		out, _ := m.Run(bin("overlayctl"), "--config", "/dev/null", "status", "--run-dir", m.RunDir, "--cni-conf-dir", m.confs)
		return out
	}
	if out := status(); strings.Contains(out, "MTU of") {
		t.Errorf("before: %s", out)
	}

	lab.Put(configKey, lab.Config(`{"Type":"vxlan","MTU":1400}`))
	want := fmt.Sprintf("container %s, eth0, has an MTU of 1450, larger than the network's: restart it", id)
	eventually(t, "the container is named", func() error {
		if out := status(); !strings.Contains(out, want) {
			return fmt.Errorf("no %q in %s", want, out)
		}
		return nil
	})
	for _, dst := range far.Addrs { // too large for the network at first, until the container has been told
		eventually(t, "a large packet passes", func() error {
			_, err := old.Try("ping", "-n", "-M", "want", "-s", "1400", "-c", "1", "-W", "1", dst.String())
			return err
		})
	}
	m.attach(lab.node("new"), "")
	if out := status(); strings.Count(out, "MTU of") != 1 {
		t.Errorf("a new container is named too: %s", out)
	}
}
