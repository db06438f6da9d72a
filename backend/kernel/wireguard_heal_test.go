package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

func (h *wgHost) peerConfigOf(p WGPeer, change func(*wgtypes.PeerConfig)) wgtypes.Config {
	cfg := wgtypes.PeerConfig{PublicKey: wgtypes.Key(p.Public), UpdateOnly: true}
	change(&cfg)
	return wgtypes.Config{Peers: []wgtypes.PeerConfig{cfg}}
}

// What others do to our link is undone, whether it is of the kernel or of a process.
func TestWireGuardHealed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		do   func(a *wgHost, p WGPeer)
		want Kind
	}{
		{"a stranger's peer", func(a *wgHost, _ WGPeer) {
			a.set(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key(newSecret().Public()), AllowedIPs: []net.IPNet{ipNet(wgSubnet(2))}}}})
		}, KindPeer},
		{"peer removed", func(a *wgHost, p WGPeer) {
			a.set(a.peerConfigOf(p, func(c *wgtypes.PeerConfig) { c.Remove = true }))
		}, KindPeer},
		{"addresses taken", func(a *wgHost, p WGPeer) {
			a.set(a.peerConfigOf(p, func(c *wgtypes.PeerConfig) { c.ReplaceAllowedIPs = true }))
		}, KindPeer},
		{"an address more", func(a *wgHost, p WGPeer) {
			a.set(a.peerConfigOf(p, func(c *wgtypes.PeerConfig) { c.AllowedIPs = []net.IPNet{ipNet(netip.MustParsePrefix("0.0.0.0/0"))} }))
		}, KindPeer},
		{"preshared key", func(a *wgHost, p WGPeer) {
			a.set(a.peerConfigOf(p, func(c *wgtypes.PeerConfig) { c.PresharedKey = new(wgtypes.Key(newSecret())) }))
		}, KindPeer},
		{"keepalive", func(a *wgHost, p WGPeer) {
			a.set(a.peerConfigOf(p, func(c *wgtypes.PeerConfig) { c.PersistentKeepaliveInterval = new(7 * time.Second) }))
		}, KindPeer},
		{"private key", func(a *wgHost, _ WGPeer) { a.set(wgtypes.Config{PrivateKey: new(wgtypes.Key(newSecret()))}) }, KindLink},
		{"port", func(a *wgHost, _ WGPeer) { a.set(wgtypes.Config{ListenPort: new(4711)}) }, KindLink},
		{"mark", func(a *wgHost, _ WGPeer) { a.set(wgtypes.Config{FirewallMark: new(3)}) }, KindLink},
		{"MTU", func(a *wgHost, _ WGPeer) { nstest.Sh(a.t, a.ns, "ip link set mtu 1300 dev "+a.link.Name) }, KindLink},
		{"down", func(a *wgHost, _ WGPeer) { nstest.Sh(a.t, a.ns, "ip link set down dev "+a.link.Name) }, KindLink},
		{"link deleted", func(a *wgHost, _ WGPeer) { nstest.Sh(a.t, a.ns, "ip link delete "+a.link.Name) }, KindLink},
		{"process killed", func(a *wgHost, _ WGPeer) {
			if a.users.devices[a.link.Name] == nil { // it is the kernel's
				nstest.Sh(a.t, a.ns, "ip link delete "+a.link.Name)
			}
			a.users.kill(a.link.Name)
		}, KindLink},
		{"route removed", func(a *wgHost, _ WGPeer) { nstest.Sh(a.t, a.ns, "ip route delete 10.0.0.0/8") }, KindRoute},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a, _, atA, _ := wgPair(t, nil)
			test.do(a, atA)
			a.until("healed", func(s Status) bool { return s.InStep && s.Healed[test.want] > 0 })
			a.has(atA)
			d := a.device()
			got := (wgInfo{}).learned(d).link(link{name: a.link.Name, mtu: 1420})
			if got.Private != a.link.Private.clamped() || got.Port != a.link.Port || got.Mark != a.link.Mark {
				t.Errorf("link %v, want %v", got, a.link)
			}
			if err := a.ping(wgSubnet(2).Addr()); err != nil {
				t.Error(err)
			}
		})
	}
}

// What cannot be is told in a line, with what there is to do, and tried again.
func TestWireGuardRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, before string
		want         string
		mend         string
	}{
		{"a link of the name", "ip link add %s type veth peer name other", "exists that is not overlayd's: remove or rename it", "ip link delete %s"},
		{"a link of a process that is not wireguard", "ip tuntap add %s mode tun", "exists that is not overlayd's: remove or rename it", "ip tuntap delete %s mode tun"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := startWG(t, testHost(t), wgLink())
			nstest.Sh(t, a.ns, fmt.Sprintf(test.before, a.link.Name))
			p := a.peer(2, newSecret(), "192.0.2.2:51820")
			a.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{p}}})
			a.until("refused", func(s Status) bool { return len(s.Failed) == 1 && strings.Contains(s.Failed[0].Err.Error(), test.want) })
			if strings.Contains(fmt.Sprint(a.Status()), a.link.Private.Base64()) {
				t.Error("the key is told")
			}
			nstest.Sh(t, a.ns, fmt.Sprintf(test.mend, a.link.Name))
			a.inStep()
			a.has(p)
		})
	}
}

// A port that another has is named, at the start and when it is to change, and taken when it is free.
func TestWireGuardPortTaken(t *testing.T) {
	t.Parallel()
	a := startWG(t, testHost(t), wgLink())
	take := func(port int) (c *net.UDPConn) {
		t.Helper()
		err := rtnl.InNetns(a.ns, func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for port := range 2 {
		a.link.Port = uint16(51820 + port)
		c := take(int(a.link.Port))
		a.Replace("", []Claim{{"self", a.self(1)}})
		a.until("refused", func(s Status) bool {
			return len(s.Failed) == 1 && strings.Contains(s.Failed[0].Err.Error(), fmt.Sprintf("UDP port %d is taken", a.link.Port))
		})
		c.Close()
		a.inStep()
		if d := a.device(); d.ListenPort != int(a.link.Port) {
			t.Errorf("port %d, want %d", d.ListenPort, a.link.Port)
		}
	}
}

// A peer that has the link's own key is refused by name: wireguard would say nothing.
func TestWireGuardOwnKey(t *testing.T) {
	t.Parallel()
	a := startWG(t, testHost(t), wgLink())
	other := a.peer(3, newSecret())
	a.Replace("", []Claim{{"self", a.self(1)}, {"copy", []Object{a.peer(2, a.link.Private, "192.0.2.2:51820")}}, {"other", []Object{other}}})
	a.until("refused", func(s Status) bool { return len(s.Failed) == 1 && s.Failed[0].Owner == "copy" && s.Pending == 0 })
	if err := a.Status().Failed[0].Err; err != errOwnKey {
		t.Error(err)
	}
	a.has(other)
}

// Links of our names that nobody wants go, at a start and at the end, with their peers.
func TestWireGuardNames(t *testing.T) {
	t.Parallel()
	a := startWG(t, testHost(t), wgLink())
	second := &wgHost{running: a.running, link: a.link, users: a.users}
	a.link.Name, second.link.Name, second.link.Port = WireGuardName, WireGuardName6, 51821
	p, q := a.peer(2, newSecret(), "192.0.2.2:51820"), second.peer(2, newSecret(), "[2001:db8::2]:51821")
	a.Replace("one", []Claim{{"self", []Object{a.link}}, {"b", []Object{p}}})
	a.Replace("two", []Claim{{"self", []Object{second.link}}, {"b", []Object{q}}})
	a.inStep()
	a.has(p)
	second.has(q)
	a.stop()

	again := &wgHost{startConfig(t, Config{Namespace: a.ns, UserSpace: a.users}, quick), a.link, a.users}
	again.Replace("one", []Claim{{"self", []Object{a.link}}, {"b", []Object{p}}})
	again.inStep()
	again.has(p)
	if out := nstest.Sh(t, a.ns, "ip link"); strings.Contains(out, WireGuardName6) {
		t.Errorf("left: %s", out)
	}
	if n := len(again.Status().Healed); n > 0 {
		t.Errorf("healed %v", again.Status().Healed)
	}
	again.stop()
	removed, err := Cleanup(t.Context(), Config{Namespace: a.ns})
	if err != nil || strings.Join(removed, ",") != "link "+WireGuardName {
		t.Errorf("removed %v, %v", removed, err)
	}
}

// Many peers that go at once do so in portions, and the others stay.
func TestWireGuardManyGo(t *testing.T) {
	t.Parallel()
	a := startWG(t, testHost(t), wgLink())
	all := a.owners(3*removalsAtOnce + 5)
	a.Replace("", all)
	a.soon()
	stay := all[:3]
	a.Replace("", stay)
	a.soon()
	a.has(stay[1].Objects[0].(WGPeer), stay[2].Objects[0].(WGPeer))
	if n := len(a.Status().Healed); n > 0 {
		t.Errorf("healed %v", a.Status().Healed)
	}
}

// A link has IPv6 where an address of it is wanted, then or later, and else not.
func TestWireGuardInnerIPv6(t *testing.T) {
	t.Parallel()
	a := startWG(t, testHost(t), wgLink())
	off := func() string {
		return strings.TrimSpace(nstest.Sh(t, a.ns, "sysctl -n net.ipv6.conf."+a.link.Name+".disable_ipv6"))
	}
	all := a.self(1)
	a.Replace("", []Claim{{"self", []Object{all[0], all[1], all[3]}}})
	a.inStep()
	if off() != "1" {
		t.Error("IPv6 is on, and nobody wants it")
	}
	a.Replace("", []Claim{{"self", all}})
	a.inStep()
	if off() != "0" {
		t.Error("IPv6 is off")
	}
	if out := nstest.Sh(t, a.ns, "ip -6 address show dev "+a.link.Name); strings.Contains(out, "fe80") {
		t.Errorf("it has an address of its own: %s", out)
	}
}
