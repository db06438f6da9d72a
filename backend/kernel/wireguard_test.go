package kernel

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// wgPair is two hosts with each other as peers, sessions not up yet.
func wgPair(t *testing.T, change func(a, b *wgHost, atA, atB *WGPeer)) (a, b *wgHost, atA, atB WGPeer) {
	t.Helper()
	nsA, nsB := pair(t)
	a, b = startWG(t, nsA, wgLink()), startWG(t, nsB, wgLink())
	atA, atB = a.peer(2, b.link.Private, "192.0.2.2:51820"), b.peer(1, a.link.Private, "192.0.2.1:51820")
	if change != nil {
		change(a, b, &atA, &atB)
	}
	a.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{atA}}})
	b.Replace("", []Claim{{"self", b.self(2)}, {"a", []Object{atB}}})
	a.inStep()
	b.inStep()
	return a, b, atA, atB
}

// Two hosts reach each other in both families, and a restart touches nothing.
func TestWireGuard(t *testing.T) {
	t.Parallel()
	a, b, atA, atB := wgPair(t, nil)
	a.has(atA)
	b.has(atB)
	for _, to := range []netip.Addr{wgSubnet(2).Addr(), wgSubnet6(2).Addr()} {
		if err := a.ping(to); err != nil {
			t.Error(err)
		}
	}
	eventually(t, time.Minute, "up", func() bool { return a.Sessions()[atA.ID()].Up(time.Now()) })
	if n := len(a.Status().Healed); n > 0 {
		t.Errorf("healed %v", a.Status().Healed)
	}
	a.stop()
	was := a.device()
	route := nstest.Sh(t, a.ns, "ip route show dev "+a.link.Name+"; ip -6 route show dev "+a.link.Name)
	if !strings.Contains(route, "10.0.0.0/8 proto 111 scope link") || !strings.Contains(route, "fd00::/8 proto 111") {
		t.Errorf("routes %s", route)
	}
	again := startConfig(t, Config{Namespace: a.ns, UserSpace: a.users})
	again.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{atA}}})
	again.inStep()
	is := a.device()
	if is.Peers[0].LastHandshakeTime != was.Peers[0].LastHandshakeTime || is.ListenPort != was.ListenPort {
		t.Errorf("the session was lost: %v, was %v", is, was)
	}
	if n := len(again.Status().Healed); n > 0 {
		t.Errorf("healed %v", again.Status().Healed)
	}
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Error(err)
	}
}

// A changed key leaves no peer behind, and its addresses are never nobody's.
func TestWireGuardKeyChanges(t *testing.T) {
	t.Parallel()
	a, b, _, atB := wgPair(t, nil)
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Fatal(err)
	}
	b.link.Private = newSecret()
	b.Replace("", []Claim{{"self", b.self(2)}, {"a", []Object{atB}}})
	b.inStep()
	atA := a.peer(2, b.link.Private, "192.0.2.2:51820")
	a.Update("", []Claim{{"b", []Object{atA}}})
	a.inStep()
	a.has(atA)
	a.Greet(atA.ID())
	eventually(t, time.Minute, "up", func() bool { return a.Sessions()[atA.ID()].Up(time.Now()) })
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Error(err)
	}
	b.has(atB)
}

// A host whose own key changes shakes hands at once with those whom it keeps alive, and with others if asked.
func TestWireGuardGreets(t *testing.T) {
	t.Parallel()
	a, b, atA, _ := wgPair(t, func(_, _ *wgHost, atA, _ *WGPeer) { atA.Keepalive = 25 })
	select {
	case <-a.SessionsChanged():
	case <-time.After(10 * time.Second):
		t.Fatal("no session, though it is to be kept alive")
	}
	was := a.Sessions()[atA.ID()].Handshake
	a.link.Private = newSecret()
	atB := b.peer(1, a.link.Private)
	b.Replace("", []Claim{{"self", b.self(2)}, {"a", []Object{atB}}})
	b.inStep()
	a.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{atA}}})
	a.inStep()
	eventually(t, time.Minute, "shaken", func() bool { return a.Sessions()[atA.ID()].Handshake.After(was) })
	a.has(atA)
}

// A preshared key that changes ends no session: both hosts go on, and use it from the next handshake on.
func TestWireGuardPresharedKeyChanges(t *testing.T) {
	t.Parallel()
	a, b, atA, atB := wgPair(t, nil)
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Fatal(err)
	}
	shook := a.device().Peers[0].LastHandshakeTime
	psk := newSecret()
	atA.PSK, atB.PSK = psk, psk
	a.Update("", []Claim{{"b", []Object{atA}}})
	a.inStep()
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Error(err)
	}
	b.Update("", []Claim{{"a", []Object{atB}}})
	b.inStep()
	if err := b.ping(wgSubnet(1).Addr()); err != nil {
		t.Error(err)
	}
	if is := a.device().Peers[0]; is.LastHandshakeTime != shook || Secret(is.PresharedKey) != psk {
		t.Errorf("the session was lost, or the key is not set")
	}
	atA.PSK, atB.PSK = Secret{}, Secret{}
	a.Update("", []Claim{{"b", []Object{atA}}})
	a.inStep()
	if is := a.device().Peers[0]; is.PresharedKey != (wgtypes.Key{}) {
		t.Errorf("there is a key yet")
	}
}

// Addresses that go from one peer to another in one update are the other's, and are never nobody's.
func TestWireGuardAddressesMove(t *testing.T) {
	t.Parallel()
	a := startWG(t, testHost(t), wgLink())
	p, q, s := a.peer(2, newSecret()), a.peer(3, newSecret()), a.peer(4, newSecret())
	a.Replace("", []Claim{{"self", a.self(1)}, {"p", []Object{p}}, {"q", []Object{q}}, {"s", []Object{s}}})
	a.inStep()
	p.Allowed, q.Allowed = q.Allowed, p.Allowed
	s.Allowed[0] = wgSubnet(5)
	a.Update("", []Claim{{"p", []Object{p}}, {"q", []Object{q}}, {"s", []Object{s}}})
	a.inStep()
	a.has(p, q, s)
	q.Allowed[1], s.Allowed[1] = s.Allowed[1], netip.Prefix{}
	a.Update("", []Claim{{"q", []Object{q}}, {"s", []Object{s}}})
	a.inStep()
	a.has(p, q, s)
	if n := len(a.Status().Healed); n > 0 {
		t.Errorf("healed %v", a.Status().Healed)
	}
}

// A takeover keeps flannel's link and its sessions; peers that no lease names go, and flannel's route is ours then.
func TestAdoptFlannelWireGuard(t *testing.T) {
	t.Parallel()
	nsA, nsB := pair(t)
	a, b := startWG(t, nsA, wgLink()), startWG(t, nsB, wgLink())
	psk := newSecret()
	atA, atB := a.peer(2, b.link.Private, "192.0.2.2:51820"), b.peer(1, a.link.Private)
	atA.PSK, atB.PSK = psk, psk
	b.Replace("", []Claim{{"self", b.self(2)}, {"a", []Object{atB}}})
	b.inStep()
	a.link.Mark = 0 // as flannel has it
	if err := rtnl.InNetns(nsA, func() error {
		return exec.Command("ip", "link", "add", a.link.Name, "mtu", "1420", "type", "wireguard").Run()
	}); err != nil {
		if err := a.users.WireGuard(a.link.Name, 1420); err != nil {
			t.Fatal(err)
		}
	}
	gone := a.peer(7, newSecret(), "192.0.2.7:51820")
	a.set(wgtypes.Config{PrivateKey: new(wgtypes.Key(a.link.Private)), ListenPort: new(51820), Peers: []wgtypes.PeerConfig{
		a.peerConfig(WGPeer{}, atA, false), a.peerConfig(WGPeer{}, gone, false),
	}})
	nstest.Sh(t, nsA, strings.ReplaceAll(`ip link set LINK up
ip address add 10.0.1.0/32 dev LINK
ip route add 10.0.0.0/8 dev LINK scope link proto boot
ip route add 172.31.0.0/16 dev LINK # a user's`, "LINK", a.link.Name))
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Fatal(err)
	}
	was := a.device()
	index := nstest.Sh(t, nsA, "ip -o link show "+a.link.Name+" | cut -d: -f1")

	all, err := Links(nsA)
	all = slices.DeleteFunc(all, func(e Existing) bool { _, ok := e.Link.(WireGuard); return !ok }) // tunl0, where ipip is loaded
	if err != nil || len(all) != 1 || len(all[0].Peers) != 2 || all[0].Foreign != "" {
		t.Fatalf("found %v, %v", all, err)
	}
	found := all[0].Link.(WireGuard)
	if found.Private != a.link.Private.clamped() || found.Port != 51820 || found.MTU != 1420 {
		t.Errorf("found %s", found)
	}
	a.link = found
	a.link.Mark = 0x1000000
	a.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{atA}}})
	a.inStep()
	a.has(atA)
	is := a.device()
	if len(is.Peers) != 1 || !slices.ContainsFunc(was.Peers, func(p wgtypes.Peer) bool {
		return p.PublicKey == is.Peers[0].PublicKey && p.LastHandshakeTime == is.Peers[0].LastHandshakeTime
	}) {
		t.Errorf("the session was lost")
	}
	if now := nstest.Sh(t, nsA, "ip -o link show "+a.link.Name+" | cut -d: -f1"); now != index {
		t.Errorf("link was made anew")
	}
	routes := nstest.Sh(t, nsA, "ip route show dev "+a.link.Name)
	if strings.Count(routes, "10.0.0.0/8") != 1 || !strings.Contains(routes, "10.0.0.0/8 proto 111") || !strings.Contains(routes, "172.31.0.0/16") {
		t.Errorf("routes %s", routes)
	}
	if err := a.ping(wgSubnet(2).Addr()); err != nil {
		t.Error(err)
	}
	a.stop()
	removed, err := Cleanup(t.Context(), Config{Namespace: nsA}, a.link)
	if err != nil || !slices.Contains(removed, "link "+a.link.Name) {
		t.Errorf("removed %v, %v", removed, err)
	}
}

// Nothing prints a secret, and what is no key is said to be none.
func TestSecret(t *testing.T) {
	t.Parallel()
	s := newSecret()
	w := WireGuard{Name: "wg0", Private: s}
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "link", w, "key", s, "peer", WGPeer{PSK: s})
	shown := fmt.Sprintf("%v %+v %#v %s %x %q %d %v %#v %s", s, s, s, s, s, s, s, w, w, WGPeer{PSK: s}) + string(text) + log.String()
	for _, secret := range []string{s.Base64(), hex.EncodeToString(s[:]), strings.Trim(fmt.Sprint([32]byte(s)), "[]")} {
		if strings.Contains(shown, secret) {
			t.Errorf("the key is shown: %s", shown)
		}
	}
	if again, err := ParseSecret(s.Base64() + "\n"); err != nil || again != s {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"", "AAAA", strings.Repeat("A", 44), s.Base64()[:43], s.Base64() + "A", strings.Repeat("*", 44)} {
		if _, err := ParseSecret(bad); err == nil && bad != "" && bad[0] != 'A' || err != nil && bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
		if _, err := ParseWGKey(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
	if got, want := s.Public(), WGKey(wgtypes.Key(s).PublicKey()); got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
}
