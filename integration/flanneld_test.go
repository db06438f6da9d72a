package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// flanneld is the path of the real one, of the version that runtimes/flannel.mod pins. To build it takes a minute and a half on
// two cores, so that not every run does: `make test-runtimes` and `make test-kernels` do, and find it again.
func flanneld(t testing.TB) string {
	t.Helper()
	dir := os.Getenv(runtimesDirEnv)
	if dir == "" {
		dir = filepath.Join("..", "bin", "runtimes")
	}
	path, err := filepath.Abs(filepath.Join(dir, "flannel"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs a real flanneld: make bin/runtimes/flannel")
	}
	return path
}

// Flanneld starts flannel's daemon on the host, with a /run of the host's own, where it keeps the key of wireguard, and waits until
// it has a lease: then subnet.env is there, and containers can come.
func (h *Host) Flanneld(args ...string) *Process {
	h.t.Helper()
	path := flanneld(h.t)
	_ = exec.Command("modprobe", "-q", "br_netfilter").Run() // it wants it; where it is built in, there is no module
	h.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	if err := os.Remove(h.SubnetFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	script := `mkdir -p "$0/flannel" && mount --bind "$0" /run && exec "$@"`
	command := []string{"unshare", "--mount", "sh", "-c", script, filepath.Join(filepath.Dir(h.RunDir), "flannel"), path,
		"--etcd-endpoints=" + h.lab.endpoint(), "--iface=eth0", "--subnet-file=" + h.SubnetFile(), "--iptables-forward-rules=false"}
	p := h.Spawn("flanneld on "+h.Name, nil, append(command, args...)...)
	eventually(h.t, "flanneld has a lease", func() error {
		if !p.Running() {
			h.t.Fatalf("flanneld on %s ended", h.Name)
		}
		_, err := os.Stat(h.SubnetFile())
		return err
	})
	return p
}

// TestFlanneldMixed has a real flanneld in a network of ours: containers reach each other both ways, at the full size.
func TestFlanneldMixed(t *testing.T) {
	t.Parallel()
	flanneld(t)
	for _, backend := range []struct {
		name, config string
		stack        Stack
		mtu          int
	}{
		{"vxlan", `{"Type":"vxlan"}`, both, 1430},
		{"host-gw", `{"Type":"host-gw"}`, both, 1500},
	} {
		t.Run(backend.name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, backend.stack, backend.config)
			us, they := lab.NewHost(wire, 11), lab.NewHost(wire, 12)
			they.Flanneld()
			us.Start("--ip-masq")
			us.WaitReady()
			us.WaitPeers(1)
			a, b := us.NewContainer(), they.NewContainer()
			for _, pair := range [][2]*Container{{a, b}, {b, a}} {
				for _, dst := range pair[1].Addrs {
					eventually(t, fmt.Sprintf("%s is reached", dst), func() error { return pair[0].PingSize(dst, 100) })
				}
				reach(t, pair[0], pair[1], backend.mtu)
			}
		})
	}
}
