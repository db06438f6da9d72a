package kernel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
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
	eventually(t, 10*time.Second, "up", func() bool { return a.Sessions()[atA.ID()].Up(time.Now()) })
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
