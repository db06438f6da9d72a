package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func network(t *testing.T, config string) *subnet.Network {
	t.Helper()
	n, err := subnet.ParseNetwork([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	return &n
}

func vxlanNetwork(t *testing.T, prefix, vni string) *subnet.Network {
	return network(t, `{"Network":"`+prefix+`","Backend":{"Type":"vxlan","VNI":`+vni+`}}`)
}

// Of two networks that cannot both be on a host the older one is served: whichever comes first, and whatever else goes on.
func TestTheOlderNetworkIsServed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, old, young, says string }{
		{"range", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`, `{"Network":"10.5.128.0/17","Backend":{"Type":"vxlan","VNI":4}}`, "overlaps 10.5.0.0/16"},
		{"VNI", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`, `{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":3}}`, "VNI 3"},
		{"port", `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`, `{"Network":"10.6.0.0/16","Backend":{"Type":"wireguard"}}`, "UDP port 51820"},
		{"protocol 4", `{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}`, `{"Network":"10.6.0.0/16","Backend":{"Type":"udp"}}`, "does not tell"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			old, young := network(t, tt.old), network(t, tt.young)
			s := NewShared("a", "b")
			a, b := s.Join("a"), s.Join("b")
			if a.ready() || b.ready() {
				t.Fatal("one is put in force before it is known what the other wants")
			}
			a.want(etcdstore.Update{Complete: true, Network: young, Config: []byte(tt.young), Created: 9})
			b.want(etcdstore.Update{Complete: true, Network: old, Config: []byte(tt.old), Created: 5})
			if !a.ready() || !b.ready() {
				t.Fatal("both are known, and waited for")
			}
			if err := a.take(*young); err == nil || !strings.Contains(err.Error(), "network b is on this host, and older") || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("the younger one: %v, want %q of network b", err, tt.says)
			}
			if err := b.take(*old); err != nil {
				t.Errorf("the older one: %v", err)
			}
			if err := a.take(*young); err == nil || !strings.Contains(err.Error(), "network b is on this host") {
				t.Errorf("with the older one in force: %v", err)
			}
			s.Leave("b")
			if err := a.take(*young); err != nil {
				t.Errorf("when that is gone: %v", err)
			}
		})
	}
}

// What is in force goes on, though an older network comes to need the same.
func TestNetworkInForceGoesOn(t *testing.T) {
	t.Parallel()
	s := NewShared("a", "b")
	a, b := s.Join("a"), s.Join("b")
	a.want(etcdstore.Update{Complete: true, Network: vxlanNetwork(t, "10.5.0.0/16", "3"), Created: 5})
	b.want(etcdstore.Update{Complete: true, Network: vxlanNetwork(t, "10.6.0.0/16", "4"), Created: 9})
	if a.take(*vxlanNetwork(t, "10.5.0.0/16", "3")) != nil || b.take(*vxlanNetwork(t, "10.6.0.0/16", "4")) != nil {
		t.Fatal("two networks that have nothing in common")
	}
	a.want(etcdstore.Update{Complete: true, Network: vxlanNetwork(t, "10.5.0.0/16", "4"), Created: 5})
	if err := a.take(*vxlanNetwork(t, "10.5.0.0/16", "4")); err == nil {
		t.Error("the older network took the VNI of one that is in force")
	}
	if err := b.take(*vxlanNetwork(t, "10.6.0.0/16", "4")); err != nil {
		t.Errorf("the younger one, in force: %v", err)
	}
}

// What an earlier run left is kept until all networks have begun, or will not soon; and a network that joins later has nothing wait.
func TestAllBeginTogether(t *testing.T) {
	t.Parallel()
	s := NewShared("", "a")
	begun := func() bool {
		select {
		case <-s.Begun():
			return true
		default:
			return false
		}
	}
	s.Join("").begin()
	if begun() {
		t.Fatal("it begins without the second")
	}
	s.Join("a").begin()
	s.Join("later")
	if !begun() {
		t.Fatal("it does not begin with both")
	}
}

// The kernel is touched once each network knows what the others have: the guard of the first to begin would drop what the second sends.
func TestBeginsOnceAllKnowOfAll(t *testing.T) {
	t.Parallel()
	s := NewShared("", "a")
	plain, a := s.Join(""), s.Join("a")
	begin := func(sh *Share, network, vni string, vnis ...uint32) {
		if err := sh.take(*vxlanNetwork(t, network, vni)); err != nil {
			t.Fatal(err)
		}
		sh.others()
		sh.hold(`"overlay.`+vni+`"`, vnis)
		sh.begin()
	}
	begin(plain, "10.5.0.0/16", "1", 1)
	begin(a, "10.6.0.0/16", "7", 7)
	select {
	case <-s.Begun():
		t.Fatal("it begins though the first does not know of the second's VNI")
	default:
	}
	plain.others()
	plain.begin()
	select {
	case <-s.Begun():
	default:
		t.Fatal("it does not begin with all that both have")
	}
	// So peers are not told of another VNI before the other network lets it pass.
	plain.hold(`"overlay.2"`, []uint32{2})
	if plain.regarded() || !a.regarded() {
		t.Error("the second regards a VNI that it has not heard of")
	}
	a.others()
	if !plain.regarded() {
		t.Error("the second does not regard what it has heard of")
	}
}

// A peer that names the VNI of another network of this host's is refused; so are the kinds of links that the kernel has one of.
func TestPeerOfAnotherNetworksVNI(t *testing.T) {
	t.Parallel()
	s := NewShared("", "blue")
	blue := s.Join("blue")
	blue.want(etcdstore.Update{Complete: true})
	if err := blue.take(*vxlanNetwork(t, "10.6.0.0/16", "7")); err != nil {
		t.Fatal(err)
	}
	blue.hold(`"overlay.7"`, []uint32{7})
	r := newRig(t, t.TempDir())
	r.cfg.Share = s.Join("")
	r.start(t)
	bad := record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)
	bad.Endpoints[0].Data = []byte(`{"VNI":7,"VtepMAC":"02:00:00:00:00:12","Port":8472}`)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{bad.Key(): bad, "10.5.74.0-24": record("10.5.74.0/24", "172.30.0.13", "vxlan", 0x13)}))
	eventually(t, "the peer is refused", func() bool {
		for _, p := range r.Status().Peers {
			if strings.Contains(p.Error, "VNI 7, which is network blue's") {
				return true
			}
		}
		return false
	})
	if routes := strings.Join(r.kernel.routes(), "; "); routes != "10.5.74.0/24 via 10.5.74.0 dev overlay.1" {
		t.Errorf("routes %s", routes)
	}
}

// What an earlier run left of a network is not touched while its claim goes on: a network beside it that is quicker would cut it off.
func TestClaimThatGoesOnIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := NewShared("", "blue")
	r := newRig(t, t.TempDir())
	r.cfg.Share = s.Join("blue")
	r.start(t)
	s.Join("").want(etcdstore.Update{Complete: true})
	s.Join("").begin()
	held := news(t, vxlanConfig, nil)
	claiming := held
	claiming.Own = etcdstore.Own{State: etcdstore.Claiming, Reason: "waiting for the host's address on the underlay"}
	r.member.tell(claiming)
	eventually(t, "blue is in force", func() bool { return r.Status().Network != "" })
	r.member.tell(claiming)
	time.Sleep(100 * time.Millisecond)
	select {
	case <-s.Begun():
		t.Fatal("it begins without blue")
	default:
	}
	r.member.tell(held)
	eventually(t, "it begins with blue", func() bool {
		select {
		case <-s.Begun():
			return true
		default:
			return false
		}
	})
}
