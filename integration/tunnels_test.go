package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/kernel"
)

// only4 is the family that flannel's ipip and udp carry.
var only4 = Stack{V4: true}

// needFeature skips a test of what this machine's kernel does not have.
func needFeature(t *testing.T, f kernel.Feature) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	_ = exec.Command("modprobe", "-q", "fou").Run() // Lacks says what became of it
	if err := kernel.Lacks(netns.None(), f); err != nil {
		t.Skip("needs another kernel: make test-kernels: ", err)
	}
}

// plain says whether packets between two containers pass the wire without a tunnel.
func plain(wire *Capture, a, b *Container) bool {
	return wire.Count(flow{Src: a.Addrs[0], Dst: b.Addrs[0]}) > 0
}

// TestIPIP has two hosts near each other, and one behind a router, with DirectRouting and without.
func TestIPIP(t *testing.T) {
	t.Parallel()
	needFeature(t, kernel.FeatureIPIP)
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("DirectRouting=%t", direct), func(t *testing.T) {
			lab, near := newWire(t, only4, fmt.Sprintf(`{"Type":"ipip","DirectRouting":%t}`, direct))
			far := lab.NewSegment(2)
			lab.NewRouter(near, far)
			hosts := []*Host{lab.NewHost(near, 11), lab.NewHost(near, 12), lab.NewHost(far, 13)}
			startAll(t, hosts, "--ip-masq")
			a, b, c := hosts[0].NewContainer(), hosts[1].NewContainer(), hosts[2].NewContainer()
			wire := near.NewCapture()
			reach(t, a, b, 1480)
			reach(t, c, a, 1480)
			if got := plain(wire, a, b); got != direct {
				t.Errorf("packets to the near host are plain: %t", got)
			}
			if plain(wire, a, c) {
				t.Error("packets to the far host are plain")
			}
			for _, h := range hosts {
				noFragments(t, h)
			}
		})
	}
}

// TestUDP has flannel's udp between hosts of ours, by the kernel where it can, and restarts one.
func TestUDP(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, only4, `{"Type":"udp"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	reach(t, a, b, 1472)
	reach(t, b, a, 1472)
	x := newTraffic(a, b)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		x.lossless(fmt.Sprintf("%v and start", sig), func() {
			hosts[0].Daemon.Stop(sig)
			x.streams[0].Pass(100)
			hosts[0].Start("--ip-masq")
			hosts[0].WaitReady()
		})
	}
	x.stop()
}

// A network whose config in etcd names no backend is flannel's udp.
func TestUDPIsTheDefault(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, only4, `{"Type":"udp"}`)
	lab.Put(configKey, `{"Network":"`+overlayV4+`"}`)
	h := lab.NewHost(wire, 11)
	h.Start()
	h.WaitReady()
	for key, value := range lab.Keys(subnetsPrefix) {
		var lease struct{ BackendType string }
		if err := json.Unmarshal([]byte(value), &lease); err != nil || lease.BackendType != "udp" {
			t.Errorf("%s has %s, %v", key, value, err)
		}
	}
}

// What cannot be is refused in a line that says what to do, and the host goes on as it is.
func TestIPv4TunnelsAreRefused(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	h.Start()
	h.WaitReady()
	for _, kind := range []string{"ipip", "udp"} {
		if out, err := h.TryOverlayctl("network", "set", lab.Config(`{"Type":"`+kind+`"}`)); err == nil || !strings.Contains(err.Error(), kind+" carries IPv4 only") {
			t.Errorf("network set: %v, %s", err, out)
		}
		lab.Put(configKey, lab.Config(`{"Type":"`+kind+`"}`))
		eventually(t, "the daemon says why", func() error {
			if out := h.Daemon.Output.String(); !strings.Contains(out, kind+" carries IPv4 only") {
				return fmt.Errorf("%s", tail(out, 3))
			}
			return nil
		})
		if _, _, err := h.Get("http://127.0.0.1:9417/readyz"); err != nil {
			t.Error(err)
		}
	}
}

// A kernel without ipip is named as the reason, and the host waits.
func TestKernelWithoutIPIP(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, only4, `{"Type":"ipip"}`)
	if kernel.Lacks(netns.None(), kernel.FeatureIPIP) == nil {
		return // another kernel's test
	}
	h := lab.NewHost(wire, 11)
	h.Start()
	eventually(t, "the daemon says why", func() error {
		_, body, err := h.Get("http://127.0.0.1:9417/readyz")
		if err == nil && !strings.Contains(body, "this host cannot serve the network yet: ipip: this kernel makes no ipip links, its module ipip is missing") {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
	lab.Put(configKey, lab.Config(`{"Type":"udp"}`))
	h.WaitReady()
}

// TestTunnelsChangeNothingLost moves a network between vxlan, ipip and udp, host by host. Where the kernel has no ipip, a process
// carries udp.
func TestTunnelsChangeNothingLost(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, only4, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	_ = exec.Command("modprobe", "-q", "fou").Run()
	lacks, gap := kernel.Lacks(netns.None(), kernel.FeatureFOU), streamGap
	if lacks != nil {
		gap = userSpaceGap
	}
	x := newTrafficEvery(gap, hosts[0].NewContainer(), hosts[1].NewContainer())
	for _, to := range []struct{ name, backend, path string }{
		{"vxlan to udp at first", `{"Type":"udp"}`, "dev overlay.udp"},
		{"back to vxlan", `{"Type":"vxlan"}`, "dev overlay.1"},
		{"vxlan to ipip", `{"Type":"ipip"}`, "dev overlay.ipip"},
		{"direct routing on", `{"Type":"ipip","DirectRouting":true}`, "dev eth0"},
		{"direct routing off", `{"Type":"ipip"}`, "dev overlay.ipip"},
		{"ipip to udp", `{"Type":"udp"}`, "dev overlay.udp"},
		{"udp to ipip", `{"Type":"ipip"}`, "dev overlay.ipip"},
		{"ipip to udp again", `{"Type":"udp"}`, "dev overlay.udp"},
		{"udp to vxlan", `{"Type":"vxlan"}`, "dev overlay.1"},
		{"vxlan to udp", `{"Type":"udp"}`, "dev overlay.udp"},
	} {
		if lacks == nil || !strings.Contains(to.name+to.backend, "ipip") {
			x.lossless(to.name, func() { lab.change(hosts, to.backend, to.path) })
		}
	}
	x.lossless("old links removed", func() {
		for _, h := range hosts {
			eventually(t, "the old links are removed", func() error {
				if out := h.Exec("sh", "-c", "ip -br link show type vxlan; ip -br link show type ipip"); strings.Contains(out, "overlay.1") || strings.Contains(out, "overlay.ipip") {
					return fmt.Errorf("%q", out)
				}
				return nil
			})
		}
	})
	x.stop()
}

// TestFlanneldIPIP mixes hosts of ours with a live flanneld, takes its place, and gives it back.
func TestFlanneldIPIP(t *testing.T) {
	t.Parallel()
	needFeature(t, kernel.FeatureIPIP)
	flanneld(t)
	lab, wire := newWire(t, only4, `{"Type":"ipip"}`)
	us, they := lab.NewHost(wire, 11), lab.NewHost(wire, 12)
	theirs := they.Flanneld()
	us.Start("--ip-masq")
	us.WaitReady()
	us.WaitPeers(1)
	a, b := us.NewContainer(), they.NewContainer()
	reach(t, a, b, 1480)
	reach(t, b, a, 1480)
	key := they.key()
	x := newTraffic(a, b)
	x.lossless("from flannel", func() {
		theirs.Stop(syscall.SIGTERM)
		if err := os.Remove(they.SubnetFile()); err != nil {
			t.Fatal(err)
		}
		they.Start("--ip-masq")
		they.WaitReady()
		they.WaitPeers(1)
	})
	if got := they.key(); got != key {
		t.Errorf("overlayd has %s, want flannel's lease %s", got, key)
	}
	if links := they.Exec("ip", "-br", "link", "show", "type", "ipip"); strings.Contains(links, "overlay") || !strings.Contains(links, "flannel.ipip") {
		t.Errorf("flannel's link was not taken over: %s", links)
	}
	x.lossless("restart", func() {
		they.Daemon.Stop(syscall.SIGKILL)
		they.Start("--ip-masq")
		they.WaitReady()
	})
	x.stop()
}

// TestFlanneldUDP mixes hosts of ours with a live flanneld, and takes its place: its link goes with it, so some packets are lost.
func TestFlanneldUDP(t *testing.T) {
	t.Parallel()
	flanneld(t)
	_ = exec.Command("modprobe", "-q", "fou").Run() // where there is none, a process does it
	lab, wire := newWire(t, only4, `{"Type":"udp"}`)
	hosts := lab.NewHosts(wire, 2)
	they := lab.NewHost(wire, 21)
	startAll(t, hosts, "--ip-masq")
	theirs := they.Flanneld()
	for _, h := range hosts {
		h.WaitPeers(2)
	}
	a, other, b := hosts[0].NewContainer(), hosts[1].NewContainer(), they.NewContainer()
	reach(t, a, b, 1472)
	reach(t, b, a, 1472)
	reach(t, a, other, 1472)
	x := newTraffic(a, b)
	x.begin()
	began := time.Now()
	theirs.Stop(syscall.SIGTERM)
	if err := os.Remove(they.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	they.Start("--ip-masq")
	they.WaitReady()
	they.WaitPeers(2)
	took := time.Since(began)
	missing, sent, _ := x.end()
	t.Logf("measured: flannel's udp taken over in %v: %d of %d datagrams missing, longest answer over TCP %v", took.Round(time.Millisecond), missing, sent, x.longest())
	x.lossless("afterwards", func() { x.streams[0].Pass(200) })
	x.stop()
	reach(t, b, a, 1472)
}

// TestAttackIPIP has a stranger send protocol 4 to a host, which is none of its peers; and a peer send what is not its own.
func TestAttackIPIP(t *testing.T) {
	t.Parallel()
	needFeature(t, kernel.FeatureIPIP)
	attackTunnel(t, "ipip", 1480, func(s *attacked, from *Node, outer netip.Addr, inner []byte) {
		s.raw(from, s.a.Addrs[0], header(outer, s.a.Addrs[0], unix.IPPROTO_IPIP, 64, inner))
	})
}

// TestAttackUDP is the same by flannel's udp.
func TestAttackUDP(t *testing.T) {
	t.Parallel()
	attackTunnel(t, "udp", 1472, func(s *attacked, from *Node, outer netip.Addr, inner []byte) {
		udp := packet(outer, s.a.Addrs[0], 8285, len(inner))
		copy(udp[28:], inner)
		udp[26], udp[27] = 0, 0 // no checksum
		s.raw(from, s.a.Addrs[0], udp)
	})
}

func attackTunnel(t *testing.T, kind string, mtu int, send func(s *attacked, from *Node, outer netip.Addr, inner []byte)) {
	for _, guarded := range []bool{false, true} {
		t.Run(fmt.Sprintf("guard=%t", guarded), func(t *testing.T) {
			args := []string{"--ip-masq"}
			if !guarded {
				args = append(args, "--guard=")
			}
			lab, wire := newWire(t, only4, `{"Type":"`+kind+`"}`)
			hosts := lab.NewHosts(wire, 2)
			for _, h := range hosts {
				h.Sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
			}
			startAll(t, hosts, args...)
			s := &attacked{t: t, a: hosts[0], b: hosts[1], stranger: lab.node("stranger")}
			wire.Plug(s.stranger, "eth0", 66)
			s.in, s.on = s.a.NewContainer(), s.b.NewContainer()
			reach(t, s.in, s.on, mtu)
			hears := func(from *Node, outer, inner netip.Addr) bool {
				return s.hears(s.in.Node, func(port int) { send(s, from, outer, packet(inner, s.in.Addrs[0], port, 8)) })
			}
			if !hears(s.b.Node, s.b.Addrs[0], near(s.on.Addrs[0], 9)) {
				t.Error("what a peer sends does not come")
			}
			for name, attack := range map[string]func() bool{
				"a tunnel from a stranger":         func() bool { return hears(s.stranger, wire.Addrs(66)[0].Addr(), near(s.on.Addrs[0], 9)) },
				"inner source of the own subnet":   func() bool { return hears(s.b.Node, s.b.Addrs[0], near(s.in.Addrs[0], 99)) },
				"inner source outside the network": func() bool { return hears(s.b.Node, s.b.Addrs[0], netip.MustParseAddr("198.51.100.7")) },
			} {
				if succeeds := attack(); succeeds == guarded {
					t.Errorf("%s succeeds: %t", name, succeeds)
				}
			}
			// Masquerading finds no other tuple for protocol 4 than that of the tunnel itself, where that is tracked.
			if guarded && hears(s.on.Node, s.on.Addrs[0], near(s.on.Addrs[0], 9)) {
				t.Error("a tunnel from a peer's container succeeds")
			}
		})
	}
}
