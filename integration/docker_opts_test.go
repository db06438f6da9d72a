package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDockerOptsOfAFormerLease writes the file, as flannel's script does, and fails: dockerd must not start on a subnet
// to which another host has the route.
func TestDockerOptsOfAFormerLease(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	h := lab.NewHost(lab.NewSegment(1), 11)
	writeFile(h, h.SubnetFile(), wholeEnv)
	out := filepath.Join(h.RunDir, "docker_opts.env")
	if _, err := h.TryOverlayctl("docker-opts", "-f", h.SubnetFile(), "-d", out); err != nil {
		t.Fatal(err)
	}
	h.Exec("ip", "link", "add", "away", "type", "bridge")
	h.Exec("ip", "link", "set", "away", "up")
	h.Exec("ip", "route", "add", "10.5.7.0/24", "via", "10.5.7.1", "dev", "away", "onlink")
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	_, err := h.TryOverlayctl("docker-opts", "-f", h.SubnetFile(), "-d", out)
	if err == nil || !strings.Contains(err.Error(), "10.5.7.0/24 is another host's: there is a route to it via 10.5.7.1") {
		t.Errorf("%v", err)
	}
	if text, err := os.ReadFile(out); err != nil || !strings.Contains(string(text), "--bip=10.5.7.1/24") {
		t.Errorf("%v: %s", err, text)
	}
}
