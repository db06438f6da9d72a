package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHostLeavesAndComesBack has one host of three leave in each way there is, and come back, while the other
// two go on talking.
func TestHostLeavesAndComesBack(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 3)
	startAll(t, hosts, "--ip-masq")
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	stream := NewStream(a, b)
	leaver := hosts[2]
	subnet := envValue(t, leaver, "FLANNEL_SUBNET")
	leaves := []struct {
		name  string
		leave func()
	}{
		{"leases release", func() {
			leaver.Daemon.Stop(syscall.SIGTERM)
			hosts[0].Overlayctl("leases", "release", networkOf(subnet))
		}},
		{"cleanup", func() {
			leaver.Daemon.Stop(syscall.SIGTERM)
			if out, code := leaver.Once("--cleanup"); code != 0 {
				t.Fatalf("--cleanup exits with %d:\n%s", code, out)
			}
			if keys := lab.Keys(subnetsPrefix); len(keys) != 2 {
				t.Errorf("%d leases after --cleanup, want the other hosts' two: %v", len(keys), keys)
			}
		}},
	}
	for _, l := range leaves {
		l.leave()
		for _, h := range hosts[:2] {
			h.WaitPeers(1)
		}
		leaver.Start("--ip-masq")
		leaver.WaitReady()
		for _, h := range hosts {
			h.WaitPeers(2)
		}
		if got := envValue(t, leaver, "FLANNEL_SUBNET"); got != subnet {
			t.Errorf("after %s the host has %s, want %s as before", l.name, got, subnet)
		}
		c := leaver.NewContainer()
		for _, dst := range c.Addrs {
			if err := a.PingSize(dst, 1000); err != nil {
				t.Errorf("after %s: %v", l.name, err)
			}
		}
		c.Detach()
	}
	stream.Stop()
}

// envValue is a value of the host's subnet.env.
func envValue(t testing.TB, h *Host, name string) string {
	t.Helper()
	b, err := os.ReadFile(h.SubnetFile())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return value
		}
	}
	t.Fatalf("subnet.env has no %s:\n%s", name, b)
	return ""
}

// networkOf turns the first address of a subnet, as subnet.env has it, into the subnet itself.
func networkOf(gateway string) string { return netip.MustParsePrefix(gateway).Masked().String() }

// TestRestartLosesNothing ends overlayd in each way there is, while packets pass.
func TestRestartLosesNothing(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true, V6: true}, backend.Config)
			hosts := lab.NewHosts(wire, 2)
			startAll(t, hosts, "--ip-masq")
			gap := streamGap
			if backend.Name == "wireguard" {
				gap = userSpaceGap
			}
			x := newTrafficEvery(gap, hosts[0].NewContainer(), hosts[1].NewContainer())
			subnet := envValue(t, hosts[0], "FLANNEL_SUBNET")
			for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
				x.lossless(fmt.Sprintf("%v and start", sig), func() {
					hosts[0].Daemon.Stop(sig)
					x.streams[0].Pass(250)
					hosts[0].Start("--ip-masq")
					hosts[0].WaitReady()
				})
			}
			x.stop()
			if got := envValue(t, hosts[0], "FLANNEL_SUBNET"); got != subnet {
				t.Errorf("the host has %s after its restarts, want %s as before", got, subnet)
			}
		})
	}
}

// TestSignals ends overlayd, in under a second, by itself and with success.
func TestSignals(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		h.endsSoon(sig)
	}
	lab.StopEtcd()
	h.endsSoon(syscall.SIGTERM) // it started from the cache
}

// endsSoon starts overlayd and ends it. One time of three must be quick: others may find the machine busy.
func (h *Host) endsSoon(sig syscall.Signal) {
	h.t.Helper()
	quickest := time.Hour
	for range 3 {
		h.Start()
		h.WaitReady()
		code, took := h.Daemon.Stop(sig)
		if code != 0 {
			h.t.Errorf("%v: exit code %d, want 0", sig, code)
		}
		if quickest = min(quickest, took); quickest < time.Second {
			return
		}
	}
	h.t.Errorf("%v: overlayd ends in %v, want less than a second", sig, quickest)
}

// TestEtcdAway starts a host from its cache while etcd does not answer.
func TestEtcdAway(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	stream := NewStream(a, b)
	lab.StopEtcd()
	hosts[0].Daemon.Stop(syscall.SIGTERM)
	for _, link := range []string{"overlay.1", "overlay6.1"} { // as a reboot does; packets are lost here
		hosts[0].Exec("ip", "link", "delete", link)
	}
	stream.stopQuietly()
	hosts[0].Start()
	hosts[0].WaitReady()
	hosts[0].WaitPeers(1)
	again := NewStream(a, b)
	late := hosts[0].NewContainer()
	if err := pingAll(late, b); err != nil {
		t.Error(err)
	}
	late.Detach()
	lab.ResumeEtcd()
	again.Pass(500)
	again.Stop()
}

// TestManyContainers adds and deletes a container a hundred times, and looks for what is left.
func TestManyContainers(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	h.Start("--ip-masq")
	h.WaitReady()
	c := h.NewContainer() // makes the bridge, and files that stay
	c.Detach()
	h.waitSwept()
	before, files := withoutMACs(h.Dump()), leases(filesUnder(t, h.varLib))
	addrs := make(map[string]bool)
	for range 100 {
		c.Attach()
		addrs[fmt.Sprint(c.Addrs)] = true
		c.Detach()
	}
	if len(addrs) < 50 {
		t.Errorf("%d different addresses in 100 turns, want them taken in turn", len(addrs))
	}
	h.waitSwept()
	if after := withoutMACs(h.Dump()); after != before {
		t.Errorf("the kernel has changed:\n%s\nwas\n%s", after, before)
	}
	if after := leases(filesUnder(t, h.varLib)); !slices.Equal(after, files) {
		t.Errorf("files under /var/lib are %q, want %q", after, files)
	}
	if links := h.Exec("ip", "-o", "link", "show", "type", "veth", "master", "cni0"); links != "" {
		t.Errorf("links left on the bridge:\n%s", links)
	}
}

// withoutMACs takes out of a dump what a bridge with no ports may change by itself: its address, and whether it
// has a carrier.
func withoutMACs(dump string) string {
	var kept []string
	for line := range strings.Lines(dump) {
		if !strings.Contains(line, "cni0") && !strings.Contains(line, "link/ether") &&
			!strings.Contains(line, "bridge ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// leases leaves out the files that host-local keeps for itself.
func leases(files []string) []string {
	return slices.DeleteFunc(files, func(f string) bool {
		name := filepath.Base(f)
		return name == "lock" || strings.HasPrefix(name, "last_reserved_ip")
	})
}
