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
		if own.Name == "wireguard" { // it sends nothing in plain text: see TestWireGuardRefusesPeers
			continue
		}
		t.Run(own.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, both, own.Config)
			vxlan, hostGW := lab.flannelHost(wire, 21, flannelSubnets...), lab.flannelHost(wire, 22, "10.5.222.0/24", "fc00:5:0:de::/64")
			vxlan.flannelMakeLinks()
			vxlan.flannelClaim("vxlan")
			hostGW.flannelClaim("host-gw")
			us := lab.NewHost(wire, 11)
			us.Start("--ip-masq")
			us.WaitReady()
			us.WaitPeers(2)
			vxlan.flannelReach("vxlan", us)
			hostGW.flannelReach("host-gw", us)

			c := us.NewContainer()
			capture := wire.NewCapture()
			for _, peer := range []*Host{vxlan, hostGW} {
				to := peer.NewContainer()
				for i, dst := range to.Addrs {
					if err := c.PingSize(dst, 1000); err != nil {
						t.Error(err)
					}
					plain := capture.Count(flow{Src: c.Addrs[i], Dst: dst}) > 0
					if want := peer == hostGW; plain != want {
						t.Errorf("packets to %s are plain: %t, want %t", dst, plain, want)
					}
				}
			}
		})
	}
}

// flannelLinks are flanneld's vxlan links, of VNI 1: IPv4's, then IPv6's.
var flannelLinks = []string{"flannel.1", "flannel-v6.1"}

// flannelSubnets are what a flanneld has leased.
var flannelSubnets = []string{"10.5.221.0/24", "fc00:5:0:dd::/64"}

// flannelHost is a host that no overlayd runs on, with a subnet.env as flannel writes it.
func (l *Lab) flannelHost(s *Segment, number int, subnets ...string) *Host {
	l.t.Helper()
	h := l.NewHost(s, number)
	h.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	env := ""
	for i, subnet := range subnets {
		infix, network := []string{"", "IPV6_"}[i], []string{overlayV4, overlayV6}[i]
		p := netip.MustParsePrefix(subnet)
		env += fmt.Sprintf("FLANNEL_%sNETWORK=%s\nFLANNEL_%sSUBNET=%s\n", infix, network, infix, netip.PrefixFrom(p.Addr().Next(), p.Bits()))
	}
	writeFile(h, h.SubnetFile(), env+"FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
	return h
}

// subnetKey is the key of the lease of a subnet, or of one in each family.
func subnetKey(subnets ...string) string {
	return subnetsPrefix + strings.ReplaceAll(strings.Join(subnets, "&"), "/", "-")
}

// flannelLease is the value of a lease as flannel writes it.
type flannelLease struct {
	PublicIP      string
	PublicIPv6    *string
	BackendType   string
	BackendData   *flannelVTEP `json:",omitempty"`
	BackendV6Data *flannelVTEP `json:",omitempty"`
}

type flannelVTEP struct {
	VNI     int
	VtepMAC string
}

// flannelMakeLinks makes the links that flanneld makes.
func (h *Host) flannelMakeLinks() {
	h.t.Helper()
	for i, subnet := range h.subnets() {
		vtep := netip.MustParsePrefix(subnet).Addr()
		h.Exec("ip", "link", "add", flannelLinks[i], "address", fmt.Sprintf("02:f1:a2:00:00:%02x", i), "type", "vxlan", "id", "1",
			"local", h.Addrs[i].String(), "dev", "eth0", "dstport", "8472", "nolearning")
		h.Exec("ip", "address", "add", netip.PrefixFrom(vtep, vtep.BitLen()).String(), "dev", flannelLinks[i])
		h.Exec("ip", "link", "set", flannelLinks[i], "up")
	}
}

// flannelClaim writes the host's lease as flanneld does.
func (h *Host) flannelClaim(backend string) {
	h.t.Helper()
	vtep := func(link string) *flannelVTEP {
		if backend != "vxlan" {
			return nil
		}
		return &flannelVTEP{VNI: 1, VtepMAC: strings.Fields(h.Exec("ip", "-br", "link", "show", link))[2]}
	}
	lease := flannelLease{PublicIP: h.Addrs[0].String(), BackendType: backend, BackendData: vtep(flannelLinks[0])}
	if len(h.Addrs) > 1 {
		lease.PublicIPv6, lease.BackendV6Data = new(h.Addrs[1].String()), vtep(flannelLinks[1])
	}
	value, err := json.Marshal(lease)
	if err != nil {
		h.t.Fatal(err)
	}
	h.lab.Put(h.key(), string(value))
}

// flannelReach programs the host as flanneld does with a peer of the same backend. One of another backend, which
// flanneld passes over, gets a route.
func (h *Host) flannelReach(backend string, peer *Host) {
	h.t.Helper()
	for key, value := range h.lab.Keys(subnetsPrefix) {
		var lease flannelLease
		if err := json.Unmarshal([]byte(value), &lease); err != nil {
			h.t.Fatalf("lease %s: %v in %s", key, err, value)
		}
		if lease.PublicIP != peer.Addrs[0].String() {
			continue
		}
		vteps := []*flannelVTEP{lease.BackendData, lease.BackendV6Data}
		for i, name := range strings.Split(strings.TrimPrefix(key, subnetsPrefix), "&") {
			addr, length, _ := strings.Cut(name, "-")
			subnet, dst, link := addr+"/"+length, peer.Addrs[i].String(), flannelLinks[i]
			if backend != "vxlan" || lease.BackendType != "vxlan" {
				h.Exec("ip", "route", "replace", subnet, "via", dst, "dev", "eth0")
				continue
			}
			h.Exec("ip", "neighbour", "replace", addr, "lladdr", vteps[i].VtepMAC, "nud", "permanent", "dev", link)
			h.Exec("bridge", "fdb", "replace", vteps[i].VtepMAC, "dst", dst, "dev", link, "self")
			h.Exec("ip", "route", "replace", subnet, "via", addr, "dev", link, "onlink")
		}
	}
}

// newTakeover is a host of ours and one of flannel's that reach each other.
func newTakeover(t *testing.T) (lab *Lab, ours, flannels *Host) {
	t.Helper()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	flannels = lab.flannelHost(wire, 21, flannelSubnets...)
	flannels.flannelMakeLinks()
	flannels.flannelClaim("vxlan")
	ours = lab.NewHost(wire, 11)
	ours.Start("--ip-masq")
	ours.WaitReady()
	ours.WaitPeers(1)
	flannels.flannelReach("vxlan", ours)
	return lab, ours, flannels
}

// TestTakeover starts overlayd where a flanneld was just stopped: it takes over the lease and the link, and no
// packet is lost.
func TestTakeover(t *testing.T) {
	t.Parallel()
	lab, us, old := newTakeover(t)
	key := old.key()
	a, b := us.NewContainer(), old.NewContainer()
	stream := NewStream(a, b)
	links := old.Exec("ip", "-o", "link", "show", "type", "vxlan")

	if err := os.Remove(old.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	old.Start("--ip-masq")
	old.WaitReady()
	stream.Pass(500)
	if got := old.key(); got != key {
		t.Errorf("overlayd has %s, want flannel's lease %s", got, key)
	}
	if now := old.Exec("ip", "-o", "link", "show", "type", "vxlan"); now != links {
		t.Errorf("flannel's links were\n%sand are\n%s", links, now)
	}
	if keys := lab.Keys(subnetsPrefix); len(keys) != 2 {
		t.Errorf("leases %v, want two", keys)
	}
	old.Daemon.Stop(syscall.SIGKILL)
	old.Start("--ip-masq")
	old.WaitReady()
	stream.Pass(250)
	stream.Stop()
}
