package kernel

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// at is where a has b now.
func (h *wgHost) at(p WGPeer) netip.AddrPort {
	h.t.Helper()
	for _, q := range h.device().Peers {
		if WGKey(q.PublicKey) == p.Public {
			return endpointOf(&q)
		}
	}
	h.t.Fatalf("no peer %s", p)
	return netip.AddrPort{}
}

// A peer that is at another endpoint than it has published stays there, whatever is put of it, also by a Reconciler that
// has just started; with its session.
func TestRoamedEndpointStays(t *testing.T) {
	t.Parallel()
	a, b, atA, atB := wgPair(t, nil)
	roamed := netip.MustParseAddrPort("192.0.2.2:51999")
	b.link.Port = roamed.Port()
	b.Replace("", []Claim{{"self", b.self(2)}, {"a", []Object{atB}}})
	b.inStep()
	if err := b.ping(wgSubnet(1).Addr()); err != nil {
		t.Fatal(err)
	}
	if at := a.at(atA); at != roamed {
		t.Fatalf("peer at %s: the test tests nothing", at)
	}
	shook := a.device().Peers[0].LastHandshakeTime
	eventually(t, 10*time.Second, "seen", func() bool { return a.Sessions()[atA.ID()].Endpoint == roamed })
	check := func(what string) {
		t.Helper()
		a.inStep()
		a.has(atA)
		if at := a.at(atA); at != roamed {
			t.Errorf("%s: peer at %s", what, at)
		}
		if is := a.device().Peers[0].LastHandshakeTime; is != shook {
			t.Errorf("%s: the session was lost", what)
		}
		if err := a.ping(wgSubnet(2).Addr()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{atA}}})
	check("an unchanged put")
	atA.Endpoints[1] = netip.MustParseAddrPort("192.0.2.12:51820")
	a.Update("", []Claim{{"b", []Object{atA}}})
	check("an endpoint more")
	atA.Keepalive = 25
	a.Update("", []Claim{{"b", []Object{atA}}})
	check("keepalive")
	a.stop()
	a.running = startConfig(t, Config{Namespace: a.ns, UserSpace: a.users}, quick)
	a.Replace("", []Claim{{"self", a.self(1)}, {"b", []Object{atA}}})
	check("a restart")
	if n := len(a.Status().Healed); n > 0 {
		t.Errorf("healed %v", a.Status().Healed)
	}
}

// pings sends one now and then, until one comes back.
func (h *wgHost) pings(to netip.Addr, within time.Duration) {
	h.t.Helper()
	var err error
	for end := time.Now().Add(within); time.Now().Before(end); {
		if err = h.ping(to); err == nil {
			return
		}
	}
	h.t.Fatal(err)
}

// A peer that does not answer is sought at its next endpoint; one that was learnt wrongly is set right by the first.
func TestEndpointsInTurn(t *testing.T) {
	t.Parallel()
	dead := netip.MustParseAddrPort("192.0.2.99:51820")
	a, b, atA, _ := wgPair(t, func(_, b *wgHost, atA, atB *WGPeer) {
		*atA = WGPeer{Link: atA.Link, Public: atA.Public, Allowed: atA.Allowed, Endpoints: [4]netip.AddrPort{
			netip.MustParseAddrPort("[2001:db8:ffff::2]:51820"), dead, netip.MustParseAddrPort("192.0.2.12:51820"),
		}}
		*atB = b.peer(1, Secret{}) // a calls
		atB.Public = WGKey{}
	})
	_ = b
	if at := a.at(atA); at != dead {
		t.Errorf("peer at %s first: no route leads to the one before %s", at, dead)
	}
	b.Replace("", []Claim{{"self", b.self(2)}, {"a", []Object{b.peer(1, a.link.Private)}}})
	b.inStep()
	a.pings(wgSubnet(2).Addr(), 2*time.Minute)
	if at := a.at(atA); at == dead {
		t.Errorf("peer at %s yet", at)
	}
	atA.Endpoints = [4]netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:51820")}
	a.set(a.peerConfigOf(atA, func(c *wgtypes.PeerConfig) { c.Endpoint = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 98), Port: 9} }))
	a.Update("", []Claim{{"b", []Object{atA}}})
	a.inStep()
	a.set(a.peerConfigOf(atA, func(c *wgtypes.PeerConfig) { c.Endpoint = &net.UDPAddr{IP: net.IPv4(192, 0, 2, 98), Port: 9} }))
	a.pings(wgSubnet(2).Addr(), 2*time.Minute)
	if at := a.at(atA); at != atA.Endpoints[0] {
		t.Errorf("peer at %s, want %s", at, atA.Endpoints[0])
	}
}

// A process that answers late, as on a busy host, is looked at no less often for it: a peer that is silent would be noticed late.
func TestLateAnswerCostsNothing(t *testing.T) {
	t.Parallel()
	a, _, _, _ := wgPair(t, nil)
	a.users.late.Store(int64(time.Second))
	looks := a.lookAt([]link{{name: a.link.Name, info: wgInfo{}}}, 0)
	if len(looks) != 1 || looks[0].err != nil || looks[0].took > time.Second/2 {
		t.Errorf("looks %+v", looks)
	}
}

// When a peer is sought at its next endpoint, by seconds in which something came or went.
func TestSilent(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		endpoints int
		sent      func(second int) bool
		answered  func(second int) bool
		want      []int // the seconds of the turns
	}{
		{"works", 3, func(int) bool { return true }, func(int) bool { return true }, nil},
		{"idle", 3, func(int) bool { return false }, func(int) bool { return false }, nil},
		{"answers now and then", 3, func(int) bool { return true }, func(s int) bool { return s%20 == 0 }, nil},
		{"never", 3, func(int) bool { return true }, func(int) bool { return false }, []int{30, 45, 60, 75, 90, 105, 120}},
		{"one datagram, and no handshake", 3, func(s int) bool { return s == 5 }, func(int) bool { return false }, nil},
		{"tried for 60 s", 3, func(s int) bool { return s < 65 }, func(int) bool { return false }, []int{30, 45, 60, 75, 90}},
		{"the next ones cannot be sent to", 3, func(s int) bool { return s < 31 }, func(int) bool { return false }, []int{30, 45, 60}},
		{"answers at the second", 3, func(int) bool { return true }, func(s int) bool { return s > 50 }, []int{30, 45}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := newKeeper()
			begin := time.Unix(1_000_000, 0)
			is := Session{Handshake: begin}
			at := &tended{was: is, heard: begin}
			var got []int
			for s := 5; s <= 120; s += 5 {
				now := begin.Add(time.Duration(s) * time.Second)
				if test.sent(s) {
					is.Sent += 148
				}
				if test.answered(s) {
					is.Received += 92
				}
				at.saw(is, now)
				if k.silent(at, now, test.endpoints) {
					got = append(got, s)
					at.turn(now)
				}
			}
			if len(got) != len(test.want) {
				t.Fatalf("turns at %v, want %v", got, test.want)
			}
			for i := range got {
				if got[i] != test.want[i] {
					t.Errorf("turns at %v, want %v", got, test.want)
				}
			}
		})
	}
}
