package fastpath

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// arrives says whether a datagram that a's container sends comes in at a tap.
func arrives(t *testing.T, a, b *site, at tap) bool {
	t.Helper()
	from := newTap(t, a.inside, "eth0")
	token := fmt.Appendf(nil, "token %d", time.Now().UnixNano())
	p := packet{from: a.c.MAC, to: a.c.Gateway, src: a.addr("IPv4"), dst: b.addr("IPv4"), proto: protoUDP, sport: 7, dport: 7, payload: token}
	at.drain()
	if err := from.send(frame{data: p.bytes()}); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		time.Sleep(2 * time.Millisecond)
		for _, f := range at.drain() {
			if bytes.Contains(f.data, token) {
				return true
			}
		}
	}
	return false
}

// A container whose link is taken from it by the host's operator gets nothing.
func TestLinkTakenAway(t *testing.T) {
	for _, test := range []struct{ name, away, back string }{
		{"down", "ip link set c0 down", "ip link set c0 up"},
		{"with its bridge down", "ip link set cni0 down", "ip link set cni0 up; ip neigh replace 10.1.2.5 lladdr $MAC dev cni0 nud permanent"},
		{"off its bridge", "ip link set c0 nomaster", "ip link set c0 master cni0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a, b := newRig(t, false, true)
			for _, s := range []*site{a, b} {
				s.run(t)
				nstest.Sh(t, s.ns, fmt.Sprintf("ip neigh replace 10.1.%d.5 lladdr %v dev cni0 nud permanent", s.number, s.c.MAC))
			}
			at := newTap(t, b.inside, "eth0")
			eventually(t, "packets arrive", func() bool { return arrives(t, a, b, at) })
			nstest.Sh(t, b.ns, test.away)
			time.Sleep(200 * time.Millisecond)
			if arrives(t, a, b, at) {
				t.Errorf("a packet arrives: %v", b.packets())
			}
			nstest.Sh(t, b.ns, strings.ReplaceAll(test.back, "$MAC", b.c.MAC.String()))
			before := b.packets()["received"]
			eventually(t, "packets arrive by the fast way again", func() bool { return arrives(t, a, b, at) && b.packets()["received"] > before })
		})
	}
}

// An index that comes again, with another container behind it, gets no packet for the one that is gone.
func TestIndexAgain(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, false, true)
	a.run(t)
	b.run(t)
	at := newTap(t, b.inside, "eth0")
	eventually(t, "packets arrive", func() bool { return arrives(t, a, b, at) })
	other := nstest.New(t)
	nstest.Sh(t, b.ns, fmt.Sprintf(`ip link del c0
ip link add c0 index %d mtu 1430 type veth peer name eth0 mtu 1430 netns %s
ip link set c0 master cni0 up`, b.c.Index, nstest.Path(other)))
	nstest.Sh(t, other, "ip link set eth0 up; ip address add 10.1.2.6/24 dev eth0")
	at = newTap(t, other, "eth0")
	for range 5 {
		time.Sleep(50 * time.Millisecond)
		if arrives(t, a, b, at) {
			t.Fatalf("the new container gets a packet of the old one's: %v", b.packets())
		}
	}
	b.SetContainers([]Container{b.c}) // nothing new is known yet
	if s := b.Status(); len(s.Slow) != 2 {
		t.Errorf("the old one is fast again: %+v", s)
	}
	next := Container{Index: b.c.Index, MAC: macOf(t, other, "eth0"), Gateway: b.c.Gateway, Addrs: []netip.Addr{addr("10.1.2.6")}}
	b.SetContainers([]Container{next})
	b.awaitAttached(t)
	if s := b.Status(); len(s.Slow) != 0 {
		t.Errorf("the new one is slow: %+v", s)
	}
}

// A subnet that moves to another host is there at once, and is taken from nobody else.
func TestSubnetMoves(t *testing.T) {
	h := newHost(t)
	f := families["IPv4"]
	subnet := netip.PrefixFrom(f.remote, 24).Masked()
	at := func(host netip.Addr) []Peer {
		return []Peer{{Subnet: subnet, Host: host, MAC: peerVTEP, VNI: 1, Port: 8472, Near: true}}
	}
	h.Replace([]Claim{{"old", at(f.peer)}})
	p := packet{from: container, to: gateway, src: f.local, dst: f.remote}
	in := packet{from: peerVTEP, to: vtep, src: f.remote, dst: f.local}
	outer := packet{from: peerHost, to: h.mac, src: f.peer, dst: f.host, dport: 8472}
	for name, move := range map[string]func(){
		"in one": func() { h.Update([]Claim{{Owner: "old"}, {"new", at(f.direct)}}) },
		"two claim it for a while": func() {
			h.Update([]Claim{{"new", at(f.direct)}})
			h.Update([]Claim{{Owner: "old"}})
		},
		"gone for a while": func() {
			h.Update([]Claim{{Owner: "old"}})
			h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "elsewhere")
			h.Update([]Claim{{"new", at(f.direct)}})
		},
		"all at once": func() { h.Replace([]Claim{{"new", at(f.direct)}}) },
	} {
		h.Replace([]Claim{{"old", at(f.peer)}})
		h.expect(t, h.kernel.FromWire, h.underlay, in.in(outer, 1).bytes(), 0, "received")
		move()
		out := h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
		if got := netip.AddrFrom4([4]byte(out[30:34])); got != f.direct {
			t.Errorf("%s: goes to %v, want %v", name, got, f.direct)
		}
		h.expect(t, h.kernel.FromWire, h.underlay, in.in(outer, 1).bytes(), 0, "source")
	}
}

// Links by which the programs could not hand on packets are left to the slow way, and it is said why.
func TestLinkThatIsNone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	nstest.Sh(t, h.cfg.Namespace, "ip tuntap add tap0 mode tap; ip link set tap0 master cni0 up; ip link add c2 type veth peer name c3; ip link set c2 up")
	attached := map[int]attachment{}
	defer func() { h.detach(attached) }()
	bridge := index(t, h.cfg.Namespace, "cni0")
	for link, want := range map[string]string{"c0": "", "tap0": "tap0 is a tuntap, no veth", "c2": "c2 is not on its bridge", "c3": "c3 is down", "lo": "lo has no Ethernet headers (loopback)"} {
		f := families["IPv4"]
		h.SetContainers([]Container{{Index: index(t, h.cfg.Namespace, link), Bridge: bridge, MAC: container, Gateway: gateway, Addrs: []netip.Addr{f.local}}})
		h.attachAll(attached)
		got := ""
		if s := h.Status(); len(s.Slow) == 1 {
			got = s.Slow[0].Why
		}
		if got != want {
			t.Errorf("%s is slow: %q, want %q", link, got, want)
		}
	}
	h.SetContainers([]Container{{Index: index(t, h.cfg.Namespace, "c2"), Addrs: []netip.Addr{addr("10.1.1.7")}}})
	if h.attachAll(attached); len(h.Status().Slow) != 0 {
		t.Errorf("c2, which is to be on none, is slow: %+v", h.Status().Slow)
	}
	nstest.Sh(t, h.cfg.Namespace, "ip link set eth0 down")
	if h.attachAll(attached); h.Status().Off != "eth0 is down" {
		t.Errorf("with the underlay down it is off: %q", h.Status().Off)
	}
}

// Looking again, or being told the same, is no change: who answers one by telling would do so for ever.
func TestChanged(t *testing.T) {
	t.Parallel()
	for name, classic := range map[string]bool{"tcx": false, "classic": true} {
		h := newHost(t)
		h.cfg.noTCX = classic
		attached := map[int]attachment{}
		defer h.detach(attached)
		f := families["IPv4"]
		c, own := h.containers, h.own
		for _, step := range []struct {
			name    string
			do      func()
			changed bool
		}{
			{"as it is", func() { h.attachAll(attached); <-h.changed }, false},
			{"a look", func() { h.attachAll(attached) }, false},
			{"the same uses", func() { h.Use("", false, nil) }, false},
			{"the same containers", func() { h.SetContainers(c) }, false},
			{"the same own end", func() { h.SetOwn(own) }, false},
			{"off", func() { h.Use("foreign rules", false, nil) }, true},
			{"off by something else", func() { h.Use("a qdisc", false, nil) }, true},
			{"on", func() { h.Use("", false, nil) }, true},
			{"a link slow", func() { h.Use("", false, map[int]string{h.veth: "a qdisc"}) }, true},
			{"by something else", func() { h.Use("", false, map[int]string{h.veth: "a shaper"}) }, true},
			{"still", func() { h.Use("", false, map[int]string{h.veth: "a shaper"}) }, false},
			{"fast", func() { h.Use("", false, nil) }, true},
			{"slow by a policy", func() { h.Slow([]netip.Addr{f.local}, true) }, true},
			{"again", func() { h.Slow([]netip.Addr{f.local}, true) }, false},
			{"a peer", func() {
				h.Update([]Claim{{"c", []Peer{{Subnet: netip.MustParsePrefix("10.9.0.0/24"), Host: f.peer, Near: true}}}})
			}, true},
			{"the same one", func() {
				h.Update([]Claim{{"c", []Peer{{Subnet: netip.MustParsePrefix("10.9.0.0/24"), Host: f.peer, Near: true}}}})
			}, false},
			{"not fast", func() { h.Update([]Claim{{"c", []Peer{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}}}) }, true},
			{"gone", func() { h.Update([]Claim{{Owner: "c"}}) }, true},
			{"no containers", func() { h.SetContainers(nil) }, true},
			{"no underlay", func() { h.SetOwn(Own{}) }, true},
		} {
			step.do()
			changed := false
			select {
			case <-h.changed:
				changed = true
			default:
			}
			if changed != step.changed {
				t.Errorf("%s: %s: changed %v, want %v", name, step.name, changed, step.changed)
			}
		}
	}
}
