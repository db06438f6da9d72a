package integration

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// secretly is a network of wireguard.
const secretly = `{"Type":"wireguard"}`

// waitPath waits until the host reaches all its peers by a path.
func (h *Host) waitPath(path string, peers int) {
	h.t.Helper()
	h.waitStatus(fmt.Sprintf("%d peers by %s", peers, path), func(s hostStatus) bool {
		n := 0
		for _, p := range s.Peers {
			if p.Path == path {
				n++
			}
		}
		return n == peers && n == len(s.Peers)
	})
}

// move sets the network's backend on one host and waits until all reach their peers by the path.
func (l *Lab) move(hosts []*Host, backend, path string) {
	l.t.Helper()
	hosts[0].Overlayctl("network", "set", l.Config(backend))
	for _, h := range hosts {
		h.waitPath(path, len(hosts)-1)
		h.waitWell()
	}
}

// TestNetworkMovesToWireGuard moves a network to wireguard and back, by a command, while containers talk: no datagram is missing,
// though a host follows late, or its daemon ends in the middle. When both ends use wireguard nothing is in clear any more.
func TestNetworkMovesToWireGuard(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	x := newTrafficEvery(userSpaceGap, a, b)
	restart := func(h *Host) {
		h.Daemon.Stop(syscall.SIGTERM)
		h.Start("--ip-masq")
		h.WaitReady()
	}
	linksAre := func(want ...string) {
		for _, h := range hosts {
			eventually(t, "old links are removed from "+h.Name, func() error {
				var have []string
				for line := range strings.Lines(h.Exec("ip", "-br", "link")) {
					if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "overlay") {
						have = append(have, name)
					}
				}
				if slices.Sort(have); !slices.Equal(have, want) {
					return fmt.Errorf("has %q, want %q", have, want)
				}
				return nil
			})
		}
	}
	x.lossless("vxlan to wireguard", func() { lab.move(hosts, secretly, "wireguard") })
	x.lossless("and no packet in clear", func() {
		clear := wire.NewCapture()
		x.streams[0].Pass(100)
		for _, pair := range [][2]*Host{{hosts[0], hosts[1]}, {hosts[1], hosts[0]}} {
			for i := range a.Addrs {
				if n := clear.Count(flow{Src: pair[0].Addrs[i], Dst: pair[1].Addrs[i], VXLAN: true}); n > 0 {
					t.Errorf("%d packets of vxlan from %s to %s", n, pair[0].Addrs[i], pair[1].Addrs[i])
				}
			}
		}
	})
	x.lossless("a daemon starts again while the links before are there", func() { restart(hosts[0]) })
	x.lossless("links of vxlan removed", func() { linksAre("overlay-wg", "overlay6-wg") })
	x.lossless("wireguard to vxlan, and one host follows late", func() {
		hosts[1].Daemon.Signal(syscall.SIGSTOP)
		hosts[0].Overlayctl("network", "set", lab.Config(`{"Type":"vxlan"}`))
		hosts[0].waitStatus("the new network", func(s hostStatus) bool { return s.Backend == "vxlan" })
		x.streams[0].Pass(100)
		hosts[1].Daemon.Signal(syscall.SIGCONT)
		lab.move(hosts, `{"Type":"vxlan"}`, "vxlan")
	})
	x.lossless("links of wireguard removed", func() { linksAre("overlay.1", "overlay6.1") })
	x.lossless("to wireguard again, and one host follows late", func() {
		hosts[1].Daemon.Signal(syscall.SIGSTOP)
		hosts[0].Overlayctl("network", "set", lab.Config(secretly))
		hosts[0].waitStatus("the new network", func(s hostStatus) bool { return s.Backend == "wireguard" })
		x.streams[0].Pass(100)
		hosts[1].Daemon.Signal(syscall.SIGCONT)
		lab.move(hosts, secretly, "wireguard")
	})
	x.lossless("and back before anything is removed", func() { lab.move(hosts, `{"Type":"vxlan"}`, "vxlan") })
	x.stop()
}

// TestWireGuardModes has the containers of two hosts talk in each of flannel's modes with one link for both families.
func TestWireGuardModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"auto", "ipv4", "ipv6"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, both, `{"Type":"wireguard","Mode":"`+mode+`","PSK":"AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`)
			hosts := lab.NewHosts(wire, 2)
			startAll(t, hosts, "--ip-masq")
			reach(t, hosts[0].NewContainer(), hosts[1].NewContainer(), 1420)
			if _, err := hosts[0].Try("ip", "link", "show", "overlay6-wg"); err == nil {
				t.Error("there are two links")
			}
		})
	}
}

// TestWireGuardBehindNAT has two hosts behind one address, which no packet reaches that they did not ask for, and one outside:
// all containers reach each other, and go on doing so.
func TestWireGuardBehindNAT(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"found": nil, "told": {"--public-ip=198.51.100.1"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab, outside := newWire(t, Stack{V4: true}, secretly)
			inside := lab.NewSegment(2)
			router := lab.NewRouter(outside, inside)
			router.Exec("ip", "address", "add", "198.51.100.1/24", "dev", "eth0")
			router.Exec("nft", `add table ip nat;
				add chain ip nat post { type nat hook postrouting priority 100; };
				add rule ip nat post oifname eth0 ip daddr 198.51.100.0/24 snat to 198.51.100.1;
				add rule ip nat post oifname eth0 masquerade;
				add chain ip nat forward { type filter hook forward priority 0; };
				add rule ip nat forward iifname eth0 ct state new drop`)
			hosts := []*Host{lab.NewHost(outside, 11), lab.NewHost(inside, 12), lab.NewHost(inside, 13)}
			hosts[0].Exec("ip", "address", "add", "198.51.100.11/24", "dev", "eth0")
			hosts[0].Start("--ip-masq", "--public-ip=198.51.100.11")
			for _, h := range hosts[1:] {
				h.Start(append([]string{"--ip-masq"}, args...)...)
			}
			var containers []*Container
			for _, h := range hosts {
				h.WaitReady()
				h.waitPath("wireguard", 2)
				h.waitWell()
				containers = append(containers, h.NewContainer())
			}
			for _, from := range containers {
				for _, to := range containers {
					if from != to {
						eventually(t, from.Name+" reaches "+to.Name, func() error { return pingAll(from, to) })
					}
				}
			}
			if name == "told" {
				return
			}
			// The router forgets: what is outside cannot reach in, until it is told again that they are there.
			router.Exec("sh", "-c", "nft flush ruleset; conntrack -F 2>/dev/null; true")
			router.Exec("nft", `add table ip nat;
				add chain ip nat post { type nat hook postrouting priority 100; };
				add rule ip nat post oifname eth0 ip protocol udp ip daddr 198.51.100.0/24 snat to 198.51.100.1:20000-30000;
				add rule ip nat post oifname eth0 masquerade`)
			eventually(t, "it reaches in by another port of the router", func() error { return pingAll(containers[0], containers[1]) })
		})
	}
}

// TestWireGuardRefusesPeers puts leases into an encrypted network that it cannot, or must not, send to: each is refused in a
// line, nothing is sent to any of them, and the others go on.
func TestWireGuardRefusesPeers(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, secretly)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	stream := newStream(a, b, userSpaceGap)
	wires := wire.NewCapture()
	world := lab.NewWorld(wire, 66)
	at := wire.Addrs(66)[0].Addr().String()
	lease := func(kind, data string) string {
		return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":%q,"BackendData":%s}`, at, kind, data)
	}
	key := hosts[1].wireGuardKey()
	subnet := "10.5.250.0"
	clear := func() (n int) {
		for _, f := range []flow{
			{Src: hosts[0].Addrs[0], Dst: netip.MustParseAddr(at), VXLAN: true},
			{Src: a.Addrs[0], Dst: netip.MustParseAddr("10.5.250.2")},
			{Src: hosts[0].Addrs[0], Dst: netip.MustParseAddr("10.5.250.2")},
		} {
			n += wires.Count(f)
		}
		return n
	}
	for _, tt := range []struct{ value, err string }{
		{lease("vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}`), "the network is encrypted, and its lease says vxlan: not sent in plain text"},
		{lease("host-gw", "null"), "the network is encrypted, and its lease says host-gw"},
		{lease("wireguard", `{"PublicKey":"`+key+`","Port":51820}`), "PublicKey " + key + " is that of host"},
		{lease("wireguard", `{"PublicKey":"nonsense","Port":51820}`), `BackendData: PublicKey: "nonsense" is no wireguard key`},
		{lease("wireguard", `{"PublicKey":5}`), "BackendData: "},
		{lease("wireguard", `"what"`), "BackendData: "},
		{lease("wireguard", `{"PublicKey":"AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","Port":53}`), "Port 53 is one of the system's"},
		{lease("wireguard", `{"PublicKey":"AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","Endpoints":["127.0.0.1:5000"]}`), "127.0.0.1:5000 is no address that another host can reach"},
		{lease("vxlan", `{"VNI":1,"VtepMAC":"02:00:00:00:00:66","Also":{"Type":"wireguard","Data":{"PublicKey":"x"}}}`), `"x" is no wireguard key`},
	} {
		lab.Put(subnetsPrefix+subnet+"-24", tt.value)
		hosts[0].waitStatus("a peer that "+tt.err, func(s hostStatus) bool {
			for _, p := range s.Peers {
				if slices.Contains(p.Subnets, subnet+"/24") {
					return p.Path == "" && strings.Contains(p.Error, tt.err) && !strings.Contains(p.Error, "\n")
				}
			}
			return false
		})
		if _, err := a.Try("ping", "-n", "-c", "1", "-W", "1", "10.5.250.2"); err == nil {
			t.Error("somebody answers")
		}
		_, _ = hosts[0].Try("ping", "-n", "-c", "1", "-W", "1", "10.5.250.2")
		if n := clear(); n > 0 {
			t.Errorf("%s: %d packets in clear", tt.value, n)
		}
	}
	// The process, if it is one, that has the links is killed: what it would have encrypted goes nowhere.
	stream.Stop()
	for _, pid := range userSpace(hosts[0]) {
		hosts[0].Exec("kill", "-KILL", pid)
	}
	_, _ = a.Try("ping", "-n", "-c", "3", "-i", "0.01", "-W", "1", b.Addrs[0].String())
	eventually(t, "containers reach each other again", func() error { return pingAll(a, b) })
	if n := wires.Count(flow{Src: a.Addrs[0], Dst: b.Addrs[0]}) + wires.Count(flow{Src: hosts[0].Addrs[0], Dst: b.Addrs[0]}); n > 0 {
		t.Errorf("%d packets to a peer in clear", n)
	}
	_ = world
}

// userSpace are the processes that serve links of the host.
func userSpace(h *Host) (pids []string) {
	out, _ := h.Try("sh", "-c", "for p in $(ip netns pids "+h.Name+"); do grep -qs '^overlayd-tun' /proc/$p/comm && echo $p; done; true")
	return strings.Fields(out)
}

// TestWireGuardGoesOn takes etcd away, starts a daemon again without it, and gives a host another address: containers talk on.
func TestWireGuardGoesOn(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, secretly)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	x := newTrafficEvery(userSpaceGap, hosts[0].NewContainer(), hosts[1].NewContainer())
	x.lossless("etcd is away while a daemon starts again", func() {
		hosts[0].waitCached(1)
		lab.StopEtcd()
		hosts[0].Daemon.Stop(syscall.SIGKILL)
		hosts[0].Start("--ip-masq")
		hosts[0].WaitReady()
		hosts[0].waitPath("wireguard", 1)
		x.streams[0].Pass(100)
		lab.ResumeEtcd()
		hosts[0].waitWell()
	})
	x.stop()
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	wire.removeAddrs(hosts[0], 11)
	wire.Address(hosts[0].Node, "eth0", 51)
	wire.DefaultRoute(hosts[0].Node, "eth0")
	eventually(t, "the other host reaches it", func() error { return pingAll(b, a) })
	eventually(t, "it reaches the other host", func() error { return pingAll(a, b) })
	for _, h := range hosts {
		h.waitWell()
	}
}
