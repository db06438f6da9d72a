package integration

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// TestEmbeddedEtcd needs nothing but overlayd: the first host runs etcd and writes the network's configuration.
func TestEmbeddedEtcd(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	first, second := lab.NewHost(wire, 11), lab.NewHost(wire, 12)
	serve := netip.AddrPortFrom(first.Addrs[0], 2379).String()
	flags := []string{"--ip-masq", "--etcd-embedded", "--etcd-embedded-listen", serve,
		"--network", lab.Config(`{"Type":"vxlan"}`)}
	lab.etcdURL = "http://" + serve
	first.Start(flags...)
	second.Start("--ip-masq")
	for _, h := range []*Host{first, second} {
		h.WaitReady()
		h.WaitPeers(1)
	}
	a, b := first.NewContainer(), second.NewContainer()
	stream := NewStream(a, b)
	subnets := envValue(t, first, "FLANNEL_SUBNET") + envValue(t, second, "FLANNEL_SUBNET")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if code, _ := first.Daemon.Stop(sig); sig == syscall.SIGTERM && code != 0 {
			t.Errorf("exit code %d", code)
		}
		if log := first.Daemon.Output.String(); strings.Contains(log, "level=ERROR") {
			t.Errorf("an etcd that ends with its daemon is no error:\n%s", log)
		}
		stream.Pass(250)
		first.Start(flags...)
		first.WaitReady()
	}
	second.WaitReady()
	stream.Pass(250)
	stream.Stop()
	if now := envValue(t, first, "FLANNEL_SUBNET") + envValue(t, second, "FLANNEL_SUBNET"); now != subnets {
		t.Errorf("subnets are %s after the restarts, want %s", now, subnets)
	}
	// The configuration that is there wins over the flag.
	first.Overlayctl("network", "set", `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`)
	first.Daemon.Stop(syscall.SIGTERM)
	first.Start(flags...)
	first.WaitReady()
	if mtu := envValue(t, first, "FLANNEL_MTU"); mtu != "1500" {
		t.Errorf("MTU %s, want host-gw's 1500: --network has overwritten the config", mtu)
	}
}
