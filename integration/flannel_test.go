package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestMixedNetwork has a network in which each peer's lease says another backend, as flannel's hosts write them:
// each is reached the way its own lease says.
func TestMixedNetwork(t *testing.T) {
	t.Parallel()
	for _, own := range backends {
		t.Run(own.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true}, own.Config)
			us := lab.NewHost(wire, 11)
			us.Start("--ip-masq")
			us.WaitReady()
			ours := netip.MustParsePrefix(networkOf(envValue(t, us, "FLANNEL_SUBNET")))
			vxlan := lab.flannelHost(wire, 21, "10.5.221.0/24")
			vxlan.flannelVXLAN(us, ours)
			hostGW := lab.flannelHost(wire, 22, "10.5.222.0/24")
			hostGW.flannelHostGW(us, ours)
			us.WaitPeers(2)

			c := us.NewContainer()
			capture := wire.NewCapture()
			for _, peer := range []*Host{vxlan, hostGW} {
				to := peer.NewContainer()
				if err := c.PingSize(to.Addrs[0], 1000); err != nil {
					t.Error(err)
				}
				plain := capture.Count(flow{Src: c.Addrs[0], Dst: to.Addrs[0]}) > 0
				if want := peer == hostGW; plain != want {
					t.Errorf("packets to %s are plain: %t, want %t", to.Addrs[0], plain, want)
				}
			}
		})
	}
}

// flannelHost is a host that no overlayd runs on, with a subnet.env as flannel writes it.
func (l *Lab) flannelHost(s *Segment, number int, subnet string) *Host {
	l.t.Helper()
	h := l.NewHost(s, number)
	h.Sysctl("net.ipv4.ip_forward=1")
	writeFile(h, h.SubnetFile(), fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
		overlayV4, strings.Replace(subnet, ".0/24", ".1/24", 1)))
	return h
}

// subnetKey is the key of a subnet's lease.
func subnetKey(subnet string) string { return subnetsPrefix + strings.Replace(subnet, "/", "-", 1) }

// flannelVXLAN programs the host as flanneld does with one peer, and claims its subnet.
func (h *Host) flannelVXLAN(peer *Host, subnet netip.Prefix) {
	h.t.Helper()
	own := networkOf(envValue(h.t, h, "FLANNEL_SUBNET"))
	const mac = "02:f1:a2:00:00:15"
	h.Exec("ip", "link", "add", "flannel.1", "address", mac, "type", "vxlan", "id", "1", "local", h.Addrs[0].String(),
		"dev", "eth0", "dstport", "8472", "nolearning")
	h.Exec("ip", "address", "add", strings.TrimSuffix(own, "/24")+"/32", "dev", "flannel.1")
	h.Exec("ip", "link", "set", "flannel.1", "up")
	h.lab.Put(subnetKey(own), fmt.Sprintf(
		`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}`, h.Addrs[0], mac))

	var lease struct {
		BackendType string
		BackendData struct{ VtepMAC string }
	}
	value := h.lab.Keys(subnetsPrefix)[subnetKey(subnet.String())]
	if err := json.Unmarshal([]byte(value), &lease); err != nil {
		h.t.Fatalf("our lease %s: %v", value, err)
	}
	if lease.BackendType != "vxlan" { // as flanneld, which ignores others, could not
		h.flannelRoute(peer, subnet)
		return
	}
	vtep := subnet.Addr().String()
	h.Exec("ip", "neighbour", "replace", vtep, "lladdr", lease.BackendData.VtepMAC, "nud", "permanent", "dev", "flannel.1")
	h.Exec("bridge", "fdb", "replace", lease.BackendData.VtepMAC, "dst", peer.Addrs[0].String(), "dev", "flannel.1", "self")
	h.Exec("ip", "route", "replace", subnet.String(), "via", vtep, "dev", "flannel.1", "onlink")
}

// flannelHostGW claims the host's subnet and programs the host as flanneld does with one peer.
func (h *Host) flannelHostGW(peer *Host, subnet netip.Prefix) {
	h.t.Helper()
	own := networkOf(envValue(h.t, h, "FLANNEL_SUBNET"))
	h.lab.Put(subnetKey(own), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null,"BackendType":"host-gw"}`, h.Addrs[0]))
	h.flannelRoute(peer, subnet)
}

func (h *Host) flannelRoute(peer *Host, subnet netip.Prefix) {
	h.t.Helper()
	h.Exec("ip", "route", "replace", subnet.String(), "via", peer.Addrs[0].String(), "dev", "eth0")
}

// TestTakeover starts overlayd where a flanneld was just stopped: it takes over the lease and the link, and no
// packet is lost.
func TestTakeover(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	us := lab.NewHost(wire, 11)
	us.Start("--ip-masq")
	us.WaitReady()
	ours := netip.MustParsePrefix(networkOf(envValue(t, us, "FLANNEL_SUBNET")))
	old := lab.flannelHost(wire, 21, "10.5.221.0/24")
	old.flannelVXLAN(us, ours)
	us.WaitPeers(1)
	a, b := us.NewContainer(), old.NewContainer()
	stream := NewStream(a, b, b.Addrs[0])
	link := old.Exec("ip", "-o", "link", "show", "flannel.1")

	if err := os.Remove(old.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	old.Start("--ip-masq")
	old.WaitReady()
	stream.Pass(100)
	if got := envValue(t, old, "FLANNEL_SUBNET"); got != "10.5.221.1/24" {
		t.Errorf("overlayd has %s, want flannel's lease 10.5.221.1/24", got)
	}
	if now := old.Exec("ip", "-o", "link", "show", "flannel.1"); now != link {
		t.Errorf("flannel's link was\n%sand is\n%s", link, now)
	}
	if out, err := old.Try("ip", "link", "show", "overlay.1"); err == nil {
		t.Errorf("there is a second link:\n%s", out)
	}
	if keys := lab.Keys(subnetsPrefix); len(keys) != 2 {
		t.Errorf("leases %v, want two", keys)
	}
	old.Daemon.Stop(syscall.SIGKILL)
	old.Start("--ip-masq")
	old.WaitReady()
	stream.Pass(50)
	stream.Stop()
}
