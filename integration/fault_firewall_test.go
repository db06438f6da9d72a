package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// iptables that hangs delays no peer, is ended and named, and takes nothing from a host that was ready; a host whose rules
// were never there is not.
func TestFirewallHangs(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 3)
	real, err := exec.LookPath("iptables-restore")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	hang, begun := filepath.Join(dir, "hang"), filepath.Join(dir, "begun")
	script := fmt.Sprintf("#!/bin/sh\n[ ! -e %s ] || { touch %s; sleep 1000; }\nexec %s \"$@\"\n", hang, begun, real)
	if err := os.WriteFile(filepath.Join(dir, "iptables-restore"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
	h, peer, late := hosts[0], hosts[1], hosts[2]
	h.StartEnv(env, "--ip-masq")
	h.WaitReady()
	if err := os.WriteFile(hang, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.Exec("nft", "flush", "ruleset")
	eventually(t, "iptables hangs", func() error { _, err := os.Stat(begun); return err })
	peer.Start()
	peer.WaitReady()
	h.WaitPeers(1)
	for _, dst := range peer.NewContainer().Addrs {
		if err := h.NewContainer().PingSize(dst, 100); err != nil {
			t.Error(err)
		}
	}
	hangs := func(s hostStatus) bool {
		return strings.Contains(strings.Join(s.Kernel.Failed, " "), "iptables-restore hangs: ended after 10s")
	}
	if s := h.waitStatus("the command that hangs is named", hangs); !s.Ready {
		t.Errorf("not ready: %s", s.Stage)
	}
	h.logs("iptables-restore hangs: ended after 10s")
	late.StartEnv(env)
	if s := late.waitStatus("the command that hangs is named", hangs); s.Ready {
		t.Errorf("ready without rules: %s", s.Stage)
	}
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	h.waitStatus("healed", func(s hostStatus) bool { return s.Kernel.InStep })
	late.WaitReady()
}
