package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/google/go-cmp/cmp"
)

// beside is a conflist of a LAN's: its addresses are not of the lease, and their way is the LAN's.
func beside(delegate map[string]any, dir string) map[string]any {
	return map[string]any{"delegate": delegate, "ipam": map[string]any{
		"dataDir": dir + "/ipam", "ranges": [][]map[string]string{{{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "gateway": "192.0.2.1"}}},
		"routes": []map[string]string{{"dst": "198.51.100.0/24"}},
	}}
}

// addLAN gives the host a link to a LAN with a machine on it that has 192.0.2.1.
func (h *host) addLAN(t *testing.T, link string) (machine string) {
	t.Helper()
	machine = h.addNamespace(t, link)
	ip(t, h.ns, "link", "add", link, "up", "type", "veth", "peer", "name", "port", "netns", h.network+link)
	ip(t, machine, "link", "set", "port", "up")
	ip(t, machine, "addr", "add", "192.0.2.1/24", "dev", "port")
	return machine
}

// TestBesideTheLease attaches to a LAN, with addresses of its own pool, and leaves nothing.
func TestBesideTheLease(t *testing.T) {
	t.Parallel()
	for name, delegate := range map[string]map[string]any{
		"macvlan":     {"type": "macvlan", "master": "lan"},
		"host-device": {"type": "host-device", "device": "lan"}, // as a VF is given: a link of a device of its own
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, v4Lease)
			h.addLAN(t, "lan")
			h.guard(t) // what the host's other links carry is of no account
			r := request{id: "c1", ifName: "net1", netns: h.addNamespace(t, "c1"), more: beside(delegate, h.dir)}
			ips, result := h.mustAdd(t, r)
			if got := ips[0].String(); got != "192.0.2.50/24" {
				t.Errorf("the address is %s", got)
			}
			mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-W5", "192.0.2.1")
			want := "192.0.2.0/24 dev net1 \n198.51.100.0/24 via 192.0.2.1 dev net1"
			if routes := ip(t, r.netns, "-4", "route"); !strings.Contains(routes, "198.51.100.0/24 via 192.0.2.1") || strings.Contains(routes, "10.5.") {
				t.Errorf("the routes are\n%s\nwant\n%s", routes, want)
			}
			second := request{id: "c1", ifName: "eth0", netns: r.netns} // and on the overlay
			second.more = map[string]any{"name": h.network + "-2"}
			h.mustAdd(t, second)
			check := r
			check.command, check.more = "CHECK", beside(delegate, h.dir)
			check.more["prevResult"] = result
			h.mustCall(t, check)
			if held := h.reserved(t); !cmp.Equal(held, []string{"192.0.2.50", "10.5.72.2"}) && !cmp.Equal(held, []string{"10.5.72.2", "192.0.2.50"}) {
				t.Errorf("addresses held: %v", held)
			}
			h.mustCall(t, second.del())
			h.mustCall(t, r.del())
			if held := h.reserved(t); len(held) != 0 {
				t.Errorf("addresses left: %v", held)
			}
		})
	}
}

// TestUnseenRefused attaches nothing that policies or the guard would have a hole by; the link stays, with the host.
func TestUnseenRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	h.addLAN(t, "lan")
	h.addLAN(t, "uplink")
	ip(t, h.ns, "link", "add", "overlay.1", "up", "type", "vxlan", "id", "1", "dstport", "8472", "dev", "uplink")
	mac := strings.Fields(ip(t, h.ns, "-br", "link", "show", "uplink"))[2]
	refused := func(delegate map[string]any, text string) {
		t.Helper()
		r := request{id: "c1", ifName: "net1", netns: h.network + "/none", more: beside(delegate, h.dir)}
		r.netns = "/run/netns/" + h.network + "lan"
		before := state(t, h.ns, r.netns)
		_, _, err := h.add(r)
		wantError(t, err, types.ErrInvalidNetworkConfig, text)
		if diff := cmp.Diff(before, state(t, h.ns, r.netns)); diff != "" {
			t.Errorf("a refused ADD changed something (-before +after):\n%s", diff)
		}
		if held := h.reserved(t); len(held) != 0 {
			t.Errorf("addresses left: %v", held)
		}
	}
	onUplink := []map[string]any{
		{"type": "macvlan", "master": "uplink"}, {"type": "host-device", "device": "uplink"}, {"type": "host-device", "hwaddr": mac},
	}
	free := request{id: "c2", ifName: "net1", netns: h.addNamespace(t, "c2"), more: beside(onUplink[0], h.dir)}
	h.mustAdd(t, free) // where nothing is guarded
	h.mustCall(t, free.del())
	h.guard(t)
	for _, delegate := range onUplink {
		refused(delegate, "which carries the overlay")
	}
	ip(t, h.ns, "route", "add", "default", "via", "192.0.2.9", "dev", "lan", "onlink")
	refused(map[string]any{"type": "macvlan", "master": "lan"}, "which carries the overlay")
	ip(t, h.ns, "route", "del", "default")
	for _, delegate := range []map[string]any{{"type": "bridge", "vlan": 7}, {"type": "macvlan", "master": "lan"}} {
		overlap := beside(delegate, h.dir)
		overlap["ipam"].(map[string]any)["ranges"] = [][]map[string]string{{{"subnet": "10.5.80.0/24"}}}
		_, _, err := h.add(request{id: "c1", ifName: "net1", netns: "/run/netns/" + h.network + "lan", more: overlap})
		wantError(t, err, types.ErrInvalidNetworkConfig, "ipam: 10.5.80.0/24 is of the overlay's 10.5.0.0/16")
	}
	h.nft(t, "add table inet overlayd_policy\n")
	for delegate, text := range map[string]string{
		"macvlan": "send by macvlan", "ipvlan": "send by ipvlan", "host-device": "send by host-device",
	} {
		refused(map[string]any{"type": delegate, "master": "lan", "device": "lan"}, text)
	}
	refused(map[string]any{"type": "bridge", "vlanTrunk": []map[string]int{{"id": 7}}}, "send by a bridge's trunk")
	h.nft(t, "delete table inet overlayd_policy\nadd table inet overlayd_pending\n")
	refused(map[string]any{"type": "macvlan", "master": "lan"}, "no policy holds")
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	r.more = map[string]any{"delegate": map[string]any{"type": "ptp"}}
	h.nft(t, "delete table inet overlayd_pending\nadd table inet overlayd_policy\n")
	h.mustAdd(t, r) // which policies see
	h.mustCall(t, r.del())
	h.nft(t, "delete table inet overlayd_policy\n")
	// The function of a NIC, as SR-IOV has them, which sysfs tells of: that of the overlay's, and of another one.
	function := request{id: "c1", ifName: "net1", netns: h.addNamespace(t, "vf"), more: beside(map[string]any{"type": "host-device", "device": "lan"}, h.dir)}
	const sysfs = "mount -t tmpfs sysfs /sys/class/net\nmkdir -p /sys/class/net/lan/device/physfn/net/"
	function.mounts = sysfs + "uplink"
	_, _, err := h.add(function)
	wantError(t, err, types.ErrInvalidNetworkConfig, "by host-device on lan, which carries the overlay")
	function.mounts = sysfs + "other"
	h.mustAdd(t, function)
	h.mustCall(t, function.del())
	ip(t, h.ns, "link", "show", "lan") // it came back
}

// TestHostEnd finds the container's link behind a VLAN's gateway, which the bridge plugin names last.
func TestHostEnd(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	ip(t, h.ns, "link", "add", "cni0", "type", "bridge")
	ip(t, h.ns, "link", "add", "port", "type", "veth", "peer", "name", "eth0", "netns", filepath.Base(h.addNamespace(t, "c1")))
	ip(t, h.ns, "link", "add", "cni0.7", "type", "veth", "peer", "name", "tagged")
	for want, made := range map[string][]*types100.Interface{
		"port": {{Name: "cni0"}, {Name: "port"}, {Name: "eth0", Sandbox: "/c1"}, {Name: "cni0.7"}},
		"":     {{Name: "cni0"}, {Name: "eth0", Sandbox: "/c1"}, {Name: "gone"}},
	} {
		err := ns.WithNetNSPath(h.ns, func(ns.NetNS) error {
			link, err := hostEnd(made)
			if got := ""; err == nil {
				if link != nil {
					got = link.Attrs().Name
				}
				if got != want {
					t.Errorf("the host's end is %q, want %q", got, want)
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
