package kernel

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// tunnelHost is a host whose kernel makes ipip links; for udp it has FOU loaded, if it knows it.
func tunnelHost(t *testing.T, feature Feature) netns.NsHandle {
	t.Helper()
	ns := testHost(t)
	_ = exec.Command("modprobe", "-q", "fou").Run() // Lacks says what became of it
	if err := Lacks(ns, feature); err != nil {
		t.Skip("needs another kernel: make test-kernels: ", err)
	}
	return ns
}

// tunnel is one peer's by an ipip link.
func tunnel(link IPIP) map[string][]Object {
	return map[string][]Object{
		"self": {link, Address{Link: link.Name, Prefix: netip.MustParsePrefix("10.0.0.0/32")}},
		"peer": {Route{Dst: netip.MustParsePrefix("10.0.1.0/24"), Via: netip.MustParseAddr("192.0.2.7"), Link: link.Name, OnLink: true}},
	}
}

var (
	ipipLink = IPIP{Name: IPIPName, Local: netip.MustParseAddr("192.0.2.1"), MTU: 1480}
	udpLink  = IPIP{Name: UDPName, Local: netip.MustParseAddr("192.0.2.1"), Underlay: "eth0", MTU: 1472, Port: 8285}
)

// holds tells what the namespace has of a link.
func holds(t *testing.T, ns netns.NsHandle, name string) string {
	t.Helper()
	return nstest.Sh(t, ns, fmt.Sprintf("ip -d link show %s; ip route show dev %[1]s; ip fou show 2>/dev/null || true", name))
}

// An ipip link is made as flannel makes it, is brought back when others change it, and goes without a trace.
func TestIPIP(t *testing.T) {
	t.Parallel()
	ns := tunnelHost(t, FeatureIPIP)
	r := start(t, ns)
	r.Replace("", byName(tunnel(ipipLink)))
	r.inStep()
	for _, want := range []string{"mtu 1480", "remote any local 192.0.2.1 ttl inherit nopmtudisc", "10.0.1.0/24 via 192.0.2.7", "onlink"} {
		if have := holds(t, ns, IPIPName); !strings.Contains(have, want) {
			t.Errorf("no %q in\n%s", want, have)
		}
	}
	for _, harm := range []string{"ip link delete overlay.ipip", "ip link set overlay.ipip down", "ip link set overlay.ipip mtu 1400",
		"ip link change overlay.ipip type ipip local 192.0.2.1 ttl 5 pmtudisc"} {
		nstest.Sh(t, ns, harm)
		r.until("healed of "+harm, func(s Status) bool {
			have := holds(t, ns, IPIPName)
			return s.InStep && strings.Contains(have, "mtu 1480") && strings.Contains(have, "ttl inherit nopmtudisc") && strings.Contains(have, "10.0.1.0/24")
		})
	}
	moved := ipipLink
	moved.Local = netip.MustParseAddr("192.0.2.9")
	r.Replace("", byName(tunnel(moved)))
	r.inStep()
	if have := holds(t, ns, IPIPName); !strings.Contains(have, "local 192.0.2.9") {
		t.Errorf("not moved: %s", have)
	}
	r.stop()
	removed, err := Cleanup(t.Context(), Config{Namespace: ns})
	if want := "1 routes,link overlay.ipip"; err != nil || strings.Join(removed, ",") != want {
		t.Errorf("removed %q, %v, want %q", removed, err, want)
	}
}

// FOU carries flannel's udp beside an ipip link of the same address, and one turns into the other.
func TestFOU(t *testing.T) {
	t.Parallel()
	ns := tunnelHost(t, FeatureFOU)
	r := start(t, ns)
	both := tunnel(udpLink)
	both["retired"] = []Object{ipipLink}
	r.Replace("", byName(both))
	r.inStep()
	has := func(when string, wants ...string) {
		t.Helper()
		have := holds(t, ns, UDPName) + nstest.Sh(t, ns, "ethtool -k overlay.udp 2>/dev/null | grep ^tx-checksumming || true")
		for _, want := range wants {
			if !strings.Contains(have, want) {
				t.Errorf("%s: no %q in\n%s", when, want, have)
			}
		}
	}
	has("at first", "mtu 1472", "encap fou", "encap-dport 8285", "port 8285 ipproto 4 local 192.0.2.1")
	ethtool := func() bool { _, err := exec.LookPath("ethtool"); return err == nil }()
	if ethtool {
		has("at first", "tx-checksumming: off")
	}
	unfinished := udpLink
	unfinished.Unfinished = true
	r.Update("", byName(tunnel(unfinished)))
	r.inStep()
	if ethtool {
		has("unfinished", "tx-checksumming: on")
	}
	for _, harm := range []string{"ip link delete overlay.udp", "ip link change overlay.udp type ipip local 192.0.2.1 dev eth0 encap none"} {
		nstest.Sh(t, ns, harm)
		r.until("healed of "+harm, func(s Status) bool {
			return s.InStep && strings.Contains(nstest.Sh(t, ns, "ip -d link show overlay.udp || true"), "encap fou")
		})
	}
	r.Replace("", byName(map[string][]Object{"self": {ipipLink}}))
	r.inStep()
	if have := nstest.Sh(t, ns, "ip fou show; ip -d link"); strings.Contains(have, "8285") {
		t.Errorf("left: %s", have)
	}
}

// A port that another program has is named, and taken once it is free; and so is a link that is in the way.
func TestTunnelsInTheWay(t *testing.T) {
	t.Parallel()
	ns := tunnelHost(t, FeatureFOU)
	nstest.Sh(t, ns, "ip fou add port 8285 ipproto 47 local 192.0.2.1; ip link add theirs type ipip local 192.0.2.1 remote any")
	r := start(t, ns)
	all := tunnel(udpLink)
	all["retired"] = []Object{ipipLink}
	r.Replace("", byName(all))
	says := func(text string) {
		t.Helper()
		r.until("saying "+text, func(s Status) bool {
			for _, f := range s.Failed {
				if strings.Contains(f.Err.Error(), text) {
					return true
				}
			}
			return false
		})
	}
	says("UDP port 8285 of 192.0.2.1 is another program's")
	says("theirs is an ipip link of 192.0.2.1 too")
	nstest.Sh(t, ns, "ip fou del port 8285 local 192.0.2.1; ip link delete theirs")
	r.inStep()
}

// flannel's link and its routes are taken over; what leads nowhere any more goes.
func TestAdoptFlannelIPIP(t *testing.T) {
	t.Parallel()
	ns := tunnelHost(t, FeatureIPIP)
	nstest.Sh(t, ns, `
ip link add flannel.ipip up mtu 1480 type ipip local 192.0.2.1 ttl inherit nopmtudisc
ip address add 10.0.0.0/32 dev flannel.ipip
ip route add 10.0.1.0/24 via 192.0.2.7 dev flannel.ipip onlink
ip route add 10.0.2.0/24 via 192.0.2.8 dev flannel.ipip onlink
ip route add 10.9.0.0/24 via 192.0.2.8 dev eth0 onlink`)
	all, err := Links(ns)
	if err != nil {
		t.Fatal(err)
	}
	taken := ipipLink
	taken.Name = FlannelIPIPName
	found := false
	for _, e := range all {
		link := e.Link.(IPIP)
		link.Unfinished = false
		found = found || link == taken && e.Foreign == "" && e.Below == 0
		if link.Name == "tunl0" && e.Foreign == "" {
			t.Error("tunl0 could be ours")
		}
	}
	if !found {
		t.Errorf("%s is not among %v", taken, all)
	}
	index := nstest.Sh(t, ns, "ip -o link show flannel.ipip | cut -d: -f1")
	r := start(t, ns)
	r.Replace("", byName(tunnel(taken)))
	r.inStep()
	r.until("without flannel's routes", func(Status) bool {
		boot := nstest.Sh(t, ns, "ip route show proto boot")
		return strings.Contains(boot, "10.9.0.0/24") && strings.Count(boot, "\n") == 1
	})
	if now := nstest.Sh(t, ns, "ip -o link show flannel.ipip | cut -d: -f1"); now != index {
		t.Errorf("the link was made anew: %s, was %s", now, index)
	}
}
