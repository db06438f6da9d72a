package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTwoClusters names endpoints of two clusters: who follows one stays with it, who knows none follows none, and all say so.
func TestTwoClusters(t *testing.T) {
	t.Parallel()
	lab := newLab(t, both)
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	newEtcdServer(t, lab.Etcd, aloneArgs("a")...)
	lab.Put(configKey, lab.Config(`{"Type":"vxlan"}`))
	a, b := "http://172.30.1.100:2379", "http://172.30.1.100:3379"
	lab.etcdURL = a + "," + b
	h := lab.NewHost(wire, 11)
	h.Start()
	h.WaitReady()
	args := aloneArgs("b")
	for i := range args {
		args[i] = strings.NewReplacer(":2379", ":3379", ":2380", ":3380").Replace(args[i])
	}
	other := &etcdServer{node: lab.Etcd, args: args, dir: filepath.Join(t.TempDir(), "data"), flags: []string{"--endpoints", "http://127.0.0.1:3379"}}
	other.start()
	other.wait()
	other.ctl("put", configKey, lab.Config(`{"Type":"vxlan"}`))

	if s := h.waitProblem("etcd at "+b+" is of cluster ", " and not used"); !s.Ready || !s.Degraded || !s.Etcd.Connected {
		t.Errorf("status: %+v", s)
	}
	h.logs("an endpoint of etcd is not used", b)
	late := lab.NewHost(wire, 12)
	late.Start()
	late.waitStage(a+" is of cluster ", b+" of cluster ", "etcd-endpoints")
	for _, host := range []*Host{h, late} {
		out, _ := host.TryOverlayctl("doctor", "--run-dir", host.RunDir)
		if lines := strings.Join(strings.Fields(out), " "); !strings.Contains(lines, a+" is of cluster ") || !strings.Contains(lines, b+" of cluster ") {
			t.Errorf("doctor on %s:\n%s", host.Name, out)
		}
	}
	if out := other.ctl("get", "--prefix", "--keys-only", subnetsPrefix); strings.Contains(out, subnetsPrefix) {
		t.Errorf("the other cluster has leases: %s", out)
	}
	other.kill()
	late.WaitReady()
	late.WaitPeers(1)
}

// TestCalmLog has a host write to disks that are full, or read-only, for as long as a few tries take: a line for each.
func TestCalmLog(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	h.State = filepath.Join(t.TempDir(), "state")
	for _, dir := range []string{h.RunDir, h.State} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=755")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	}
	h.Start()
	h.WaitReady()
	_ = os.WriteFile(filepath.Join(h.State, "ballast"), make([]byte, 64<<10), 0o600)
	env := filepath.Join(h.RunDir, "subnet.env")
	if err := errors.Join(os.Remove(env), syscall.Mount("tmpfs", h.RunDir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	h.waitProblem("cannot write subnet.env", env, "read-only file system")
	time.Sleep(5 * time.Second) // as many tries
	// What needs attention, and that it is not ready.
	if n := strings.Count(h.Daemon.Output.String(), "cannot write subnet.env"); n > 2 {
		t.Errorf("%d lines:\n%s", n, h.Daemon.Output.String())
	}
	if err := errors.Join(os.Remove(filepath.Join(h.State, "ballast")), syscall.Mount("tmpfs", h.RunDir, "tmpfs", syscall.MS_REMOUNT, "")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "subnet.env is whole again", func() error {
		if text, err := os.ReadFile(env); err != nil || !strings.Contains(string(text), "FLANNEL_IPMASQ") {
			return fmt.Errorf("%q, %v", text, err)
		}
		return nil
	})
	h.waitWell()
}
