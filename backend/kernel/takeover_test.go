package kernel

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// flannel makes what flannel leaves behind on a host with two peers.
func flannel(o overlay, name string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "ip link add %s up address 02:0f:00:00:00:01 mtu %d type vxlan id 1 local %s dev eth0 dstport 8472 nolearning\n",
		name, o.link.MTU, o.link.Local)
	fmt.Fprintf(&s, "ip address add %s dev %s\n", o.own.Prefix, name)
	for i := 1; i <= 3; i++ {
		ip := o.subnet(i).Addr()
		fmt.Fprintf(&s, "ip neighbour add %s lladdr %s nud permanent dev %s\n", ip, peerMAC(i), name)
		fmt.Fprintf(&s, "bridge fdb add %s dev %s dst %s self permanent\n", peerMAC(i), name, o.vtep(i))
		fmt.Fprintf(&s, "ip route add %s via %s dev %s onlink\n", o.subnet(i), ip, name)
	}
	return s.String()
}

// A takeover keeps flannel's link, as it is; what flannel left for peers that are gone goes, and what a user put on the
// link stays.
func TestAdoptFlannel(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		const name = "flannel.1"
		nstest.Sh(t, ns, flannel(o, name))
		users := fmt.Sprintf("ip route add %s via %s dev %s onlink", o.subnet(77), o.subnet(1).Addr(), name)
		nstest.Sh(t, ns, users)
		index := nstest.Sh(t, ns, "cat /sys/class/net/"+name+"/ifindex 2>/dev/null || ip -o link show "+name+" | cut -d: -f1")

		found := onlyVXLAN(t, ns)
		if want := (MAC{2, 15, 0, 0, 0, 1}); found.Name != name || found.MAC != want {
			t.Fatalf("found %s", found)
		}
		o.link.Name, o.link.MAC, o.own.Link = name, found.MAC, name
		r := start(t, ns)
		r.Replace("", byName(o.network(2))) // peer 3 is gone
		r.inStep()
		r.has(o, 1, 2)
		if now := nstest.Sh(t, ns, "cat /sys/class/net/"+name+"/ifindex 2>/dev/null || ip -o link show "+name+" | cut -d: -f1"); now != index {
			t.Errorf("link was made anew: index %s, was %s", now, index)
		}
		boot := nstest.Sh(t, ns, "ip route show proto boot; ip -6 route show proto boot")
		if want := o.subnet(77).String(); !strings.Contains(boot, want) || strings.Count(boot, "\n") != 1 {
			t.Errorf("routes of others: %q, want that to %s", boot, want)
		}

		r.stop()
		removed, err := Cleanup(t.Context(), Config{Namespace: ns}, o.self()...)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"3 routes", "link " + name}, removed); diff != "" {
			t.Errorf("removed (-want +got):\n%s", diff)
		}
		if out := nstest.Sh(t, ns, "ip -o link; ip route; ip -6 route"); strings.Contains(out, name) {
			t.Errorf("left after cleanup: %s", out)
		}
	})
}

// onlyVXLAN is the one link of vxlan that there is. The module ipip has put tunl0 beside it where another test has it loaded.
func onlyVXLAN(t *testing.T, ns netns.NsHandle) (v VXLAN) {
	t.Helper()
	all, err := Links(ns)
	n := 0
	for _, l := range all {
		if found, ok := l.Link.(VXLAN); ok {
			v = found
			n++
		}
	}
	if err != nil || n != 1 {
		t.Fatalf("found %v, %v", all, err)
	}
	return v
}

// flannel's host-gw routes are replaced one by one, and only where ours do the same.
func TestAdoptHostGW(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		for i := 1; i <= 3; i++ {
			nstest.Sh(t, ns, fmt.Sprintf("ip route add %s via %s dev eth0", o.subnet(i), o.hostgw(10+i)))
		}
		r := start(t, ns)
		r.Replace("", []Claim{
			{"peer1", []Object{Route{Dst: o.subnet(1), Via: o.hostgw(11), Link: "eth0"}}},
			{"peer2", []Object{Route{Dst: o.subnet(2), Via: o.hostgw(99), Link: "eth0"}}}, // moved: whose is the old one?
		})
		r.inStep()
		boot := nstest.Sh(t, ns, "ip route show proto boot; ip -6 route show proto boot")
		for i, want := range []bool{1: false, 2: true, 3: true} {
			if got := strings.Contains(boot, fmt.Sprintf("%s via", o.subnet(i))); i > 0 && got != want {
				t.Errorf("route to peer %d there: %t, want %t", i, got, want)
			}
		}
	})
}

// What is there is described as we would make it, and what ours never have is named.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, script string
		want         []string
	}{
		{"of a remote", "ip link add x type vxlan id 1 dstport 8472 remote 192.0.2.7 local 192.0.2.1 dev eth0", []string{"x 1 8472 IPv4 a group or remote"}},
		{"of a group", "ip link add x type vxlan id 1 dstport 8472 group 239.1.1.1 dev eth0", []string{"x 1 8472 IPv4 a group or remote"}},
		{"of a bridge", "ip link add br0 type bridge; ip link add x type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0; ip link set x master br0", []string{"x 1 8472 IPv4 a master"}},
		{"external", "ip link add x type vxlan dstport 8472 external", []string{"x 0 8472 IPv4 external metadata"}},
		{"external on another port", "ip link add x type vxlan dstport 4789 external", []string{"x 0 4789 IPv4 external metadata"}},
		{"none", "", nil},
		{"another VNI", "ip link add x type vxlan id 2 dstport 8472 local 192.0.2.1 dev eth0", []string{"x 2 8472 IPv4 "}},
		{"another port", "ip link add x type vxlan id 1 dstport 4789 local 192.0.2.1 dev eth0", []string{"x 1 4789 IPv4 "}},
		{"another family", "ip link add x type vxlan id 1 dstport 8472 local 2001:db8::1 dev eth0", []string{"x 1 8472 IPv6 "}},
		{"flannel's", "ip link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 dev eth0 nolearning", []string{"flannel.1 1 8472 IPv4 "}},
		{"without a local address", "ip link add x type vxlan id 1 dstport 8472 dev eth0", []string{"x 1 8472 IPv4 "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ns := testHost(t)
			nstest.Sh(t, ns, test.script)
			all, err := Links(ns)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range all {
				v, ok := e.Link.(VXLAN)
				if !ok { // tunl0, which the module of ipip puts everywhere
					continue
				}
				family := "IPv4"
				if v.Local.Is6() {
					family = "IPv6"
				}
				got = append(got, fmt.Sprintf("%s %d %d %s %s", v.Name, v.VNI, v.Port, family, e.Foreign))
				if v.MAC == (MAC{}) {
					t.Error("no MAC")
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("links (-want +got):\n%s", diff)
			}
		})
	}
}

// The agent reads the underlay again when it changed, and not because we did our work.
func TestUnderlayChanged(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 3)
		ns := r.ns
		quiet := func(wait time.Duration) {
			for {
				select {
				case <-r.UnderlayChanged():
				case <-time.After(wait):
					return
				}
			}
		}
		quiet(2 * time.Second) // IPv6 addresses of the links are not tentative then
		for i := 4; i < 10; i++ {
			r.Update("", []Claim{{fmt.Sprintf("peer%d", i), o.peer(i)}})
			r.inStep()
		}
		nstest.Sh(t, ns, fmt.Sprintf("ip neighbour add %s lladdr %s dev eth0", o.hostgw(77), peerMAC(7)))
		select {
		case <-r.UnderlayChanged():
			t.Error("signal for our own changes, or for a neighbour")
		case <-time.After(200 * time.Millisecond):
		}
		for _, change := range []string{
			"ip link add veth9 type veth peer name veth8",
			fmt.Sprintf("ip address add %s/32 dev eth0", o.hostgw(78)),
			fmt.Sprintf("ip route add %s via %s dev eth0", o.subnet(99), o.hostgw(77)),
		} {
			nstest.Sh(t, ns, change)
			select {
			case <-r.UnderlayChanged():
			case <-time.After(5 * time.Second):
				t.Errorf("no signal after %s", change)
			}
			quiet(200 * time.Millisecond)
		}
	})
}

// Whether a link over IPv6 takes UDP without a checksum cannot be changed: one that need not stays as it is, and one that must and
// does not is made anew.
func TestZeroChecksum(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ there, wanted, anew bool }{
		"to be made":             {wanted: true, anew: true},
		"there without":          {there: true},
		"there, and wanted with": {there: true, wanted: true, anew: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := testHost(t)
			o := overlays()[1] // over IPv6
			if tt.there {
				before := start(t, ns)
				before.Replace("", byName(map[string][]Object{"self": o.self()}))
				before.inStep()
				before.stop()
			}
			index := "ip -o link show " + o.link.Name + " 2>/dev/null | cut -d: -f1"
			was := nstest.Sh(t, ns, index)
			o.link.ZeroChecksum = tt.wanted
			r := start(t, ns)
			r.Replace("", byName(map[string][]Object{"self": o.self()}))
			r.inStep()
			if anew := nstest.Sh(t, ns, index) != was; anew != tt.anew {
				t.Errorf("made anew: %v, want %v", anew, tt.anew)
			}
			show := nstest.Sh(t, ns, "ip -d link show "+o.link.Name)
			if strings.Contains(show, " udp6zerocsumrx") != tt.wanted {
				t.Errorf("wanted %v: %s", tt.wanted, show)
			}
			r.stop()
			now := nstest.Sh(t, ns, index)
			o.link.ZeroChecksum = false // of an overlayd that plans it for a peer alone, or an older one
			r = start(t, ns)
			r.Replace("", byName(map[string][]Object{"self": o.self()}))
			r.inStep()
			if after := nstest.Sh(t, ns, index); after != now {
				t.Errorf("a link that takes more was made anew: %s, was %s", after, now)
			}
			if found := onlyVXLAN(t, ns); found.ZeroChecksum != tt.wanted {
				t.Errorf("found %v", found)
			}
		})
	}
}

// What flannel left goes also where our routes have to wait for the firewall at first.
func TestFlannelsRoutesGoAfterTheGate(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	ns, gate := testHost(t), make(chan struct{})
	const name = "flannel.1"
	nstest.Sh(t, ns, flannel(o, name))
	o.link.Name, o.link.MAC, o.own.Link = name, MAC{2, 15, 0, 0, 0, 1}, name
	r := startConfig(t, Config{Namespace: ns, RoutesAfter: gate})
	r.Replace("", byName(o.network(2))) // peer 3 is gone
	r.until("waiting for the gate", func(s Status) bool { return s.Pending == 2 })
	close(gate)
	r.inStep()
	if boot := nstest.Sh(t, ns, "ip route show proto boot"); boot != "" {
		t.Errorf("flannel's are left: %s", boot)
	}
}
