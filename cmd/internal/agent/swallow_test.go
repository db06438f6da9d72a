package agent

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/overlayd/overlayd/backend/underlay"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// surrounded is a host at 172.30.0.11/24 with things around it.
func surrounded(more ...underlay.Connected) Host {
	h := testHost("172.30.0.11")
	h.Around = underlay.Around{Gateways: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Connected: append([]underlay.Connected{
		{Prefix: netip.MustParsePrefix("172.30.0.0/24"), Link: "eth0", Containers: true}, // as a veth is
		{Prefix: netip.MustParsePrefix("10.5.72.0/24"), Link: "docker0", Containers: true},
		{Prefix: netip.MustParsePrefix("10.5.72.0/32"), Link: "overlay.1", Containers: true},
		{Prefix: netip.MustParsePrefix("10.5.99.0/24"), Link: "cni0", Containers: true}, // of a lease that nobody remembers
	}, more...)}
	return h
}

// moving is a host that changes while the agent runs.
type moving struct {
	mu   sync.Mutex
	host Host
}

func (m *moving) set(h Host) { m.mu.Lock(); defer m.mu.Unlock(); m.host = h }

func (m *moving) get() (Host, error) { m.mu.Lock(); defer m.mu.Unlock(); return m.host, nil }

func wire(prefix string) underlay.Connected {
	return underlay.Connected{Prefix: netip.MustParsePrefix(prefix), Link: "eth1"}
}

// A network that covers what the host needs to reach etcd and its peers is not followed by a host that has another, and
// not even by one that has none; both follow the correction.
func TestNetworkThatSwallows(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		config, says string
		around       []underlay.Connected
	}{
		"all of it":        {`{"Network":"172.16.0.0/12"}`, "covers this host's address 172.30.0.11", nil},
		"the gateway":      {`{"Network":"198.51.100.0/24"}`, "covers the gateway 198.51.100.1", nil},
		"etcd":             {`{"Network":"192.0.2.0/24"}`, "covers etcd at 192.0.2.7", nil},
		"a part of a wire": {`{"Network":"172.16.0.0/22"}`, "covers 172.16.0.0/16 on eth1", []underlay.Connected{wire("172.16.0.0/16")}},
		"a wire":           {`{"Network":"172.16.0.0/14"}`, "covers 172.17.3.0/24 on eth1", []underlay.Connected{wire("172.17.3.0/24")}},
		"a large bridge": {`{"Network":"172.16.0.0/14","SubnetLen":24}`, "covers 172.17.0.0/16 on docker0",
			[]underlay.Connected{{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: "docker0", Containers: true}}},
		"another range than is pinned": {`{"Network":"10.6.0.0/16"}`, "10.6.0.0/16 is not the one that network: pins (10.5.0.0/16)", nil},
	} {
		for _, fresh := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, t.TempDir())
				host := &moving{host: surrounded(tt.around...)}
				r.host = host.get
				r.cfg.EtcdAddrs = func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.7")} }
				if strings.Contains(tt.says, "pins") {
					pin := news(t, vxlanConfig, nil)
					r.cfg.Pin = pin.Network
				}
				stop := r.start(t)
				if !fresh {
					r.member.tell(news(t, vxlanConfig, nil))
					eventually(t, "ready", func() bool { return r.Status().Ready })
				}
				r.member.tell(news(t, tt.config, nil))
				eventually(t, "the problem is told", func() bool {
					s := r.Status()
					return strings.Contains(strings.Join(s.Problems, "\n"), tt.says) && (!fresh || strings.Contains(s.Stage, tt.says))
				})
				if s := r.Status(); s.Ready == fresh || !fresh && s.Network != vxlanConfig {
					t.Errorf("%+v, want a host that waits at its start, and else keeps what it has", s)
				}
				r.member.tell(news(t, vxlanConfig, nil))
				eventually(t, "all is well", func() bool { s := r.Status(); return s.Ready && !s.Degraded && s.Network == vxlanConfig })
				if err := stop(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A host that waits, or keeps its network, follows when what was in the way is gone.
func TestNetworkIsFollowedWhenTheGroundIsClear(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	host := &moving{host: surrounded(wire("10.5.8.0/24"))}
	r.host = host.get
	r.start(t)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)}))
	eventually(t, "it waits", func() bool { s := r.Status(); return !s.Ready && strings.Contains(s.Stage, "10.5.8.0/24 on eth1") })
	host.set(surrounded())
	r.kernel.underlay <- struct{}{}
	eventually(t, "ready", func() bool { s := r.Status(); return s.Ready && !s.Degraded && len(r.kernel.routes()) == 1 })

	host.set(surrounded(wire("10.5.73.0/24")))
	r.kernel.underlay <- struct{}{}
	eventually(t, "a wire that comes later is told, and its peer is not reached", func() bool {
		s := r.Status()
		return s.Ready && len(s.Problems) == 1 && strings.Contains(s.Peers[0].Error, "covers 10.5.73.0/24 on eth1") && len(r.kernel.routes()) == 0
	})
	host.set(surrounded())
	r.kernel.underlay <- struct{}{}
	eventually(t, "all is well", func() bool { s := r.Status(); return s.Ready && !s.Degraded && len(r.kernel.routes()) == 1 })
}

// What a host has is kept over a restart, though etcd says something that would swallow it.
func TestNetworkThatSwallowsAtARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	peers := map[string]*subnet.Record{"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)}
	for i, config := range []string{vxlanConfig, `{"Network":"8.0.0.0/5","SubnetLen":24}`, `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`} {
		r := newRig(t, dir)
		if own := record("10.5.72.0/24", "172.30.0.11", "vxlan", 0x11); i > 0 {
			r.cfg.Last = leasecache.View{Config: []byte(vxlanConfig), Own: own, Last: own}
		}
		r.host = func() (Host, error) { return surrounded(wire("9.1.0.0/24")), nil }
		stop := r.start(t)
		r.member.tell(news(t, config, peers))
		eventually(t, "ready", func() bool { return r.Status().Ready })
		if s := r.Status(); (s.Network == vxlanConfig) != (i < 2) || (len(s.Problems) > 0) != (i == 1) || s.Subnets[0] != "10.5.72.0/24" {
			t.Errorf("with %s: %+v", config, s)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// A peer's subnet that covers what the host needs, or an older host's public IP, is not routed.
func TestPeerThatSwallows(t *testing.T) {
	t.Parallel()
	const wide = `{"Network":"8.0.0.0/5","SubnetLen":24}`
	peer := func(subnetText, ip string, revision int64) *subnet.Record {
		return aged(subnetText, ip, netip.MustParseAddr(ip).As4()[3], revision)
	}
	r := newRig(t, t.TempDir())
	var mu sync.Mutex
	etcd := []netip.Addr{netip.MustParseAddr("12.64.9.7")}
	r.cfg.EtcdAddrs = func() []netip.Addr { mu.Lock(); defer mu.Unlock(); return etcd }
	host := surrounded(wire("12.64.0.0/24"))
	host.Around.Gateways = []netip.Addr{netip.MustParseAddr("12.64.1.1")}
	network, err := subnet.ParseNetwork([]byte(wide))
	if err != nil {
		t.Fatal(err)
	}
	r.host = func() (Host, error) { return host, nil }
	r.cfg.Last = leasecache.View{Config: []byte(wide)} // so that it is the peers that matter
	r.start(t)
	u := news(t, wide, map[string]*subnet.Record{
		"12.64.0.0-24": peer("12.64.0.0/24", "172.30.0.12", 11),
		"12.64.1.0-24": peer("12.64.1.0/24", "172.30.0.13", 12),
		"12.64.9.0-24": peer("12.64.9.0/24", "172.30.0.14", 13),
		"10.5.80.0-24": peer("10.5.80.0/24", "12.70.0.15", 14),
		"10.5.81.0-24": peer("10.5.81.0/24", "12.70.1.18", 16),
		"12.70.0.0-24": peer("12.70.0.0/24", "172.30.0.16", 15), // younger than who is there
		"12.70.1.0-24": peer("12.70.1.0/24", "172.30.0.17", 15), // older
	})
	u.Network = &network
	r.member.tell(u)
	to := func(subnets ...string) func() bool {
		return func() bool {
			var want []string
			for _, s := range subnets {
				want = append(want, s+"/24 via "+s+" dev overlay.1")
			}
			return slices.Equal(r.kernel.routes(), want)
		}
	}
	eventually(t, "four are not reached", to("10.5.80.0", "10.5.81.0", "12.70.1.0"))
	eventually(t, "ready", func() bool { return r.Status().Ready })
	said := map[string]string{}
	for _, p := range r.Status().Peers {
		said[p.Subnets[0]] = p.Error
	}
	for subnet, says := range map[string]string{
		"12.64.0.0/24": "covers 12.64.0.0/24 on eth1", "12.64.1.0/24": "covers the gateway 12.64.1.1", "12.64.9.0/24": "covers etcd at 12.64.9.7",
		"12.70.0.0/24": `covers 12.70.0.15, the public IP of host "12.70.0.15" (12.70.0.15) at 12.70.0.15, whose lease is older`,
	} {
		if !strings.Contains(said[subnet], says) {
			t.Errorf("%s: %q, want %q", subnet, said[subnet], says)
		}
	}
	mu.Lock()
	etcd = nil
	mu.Unlock()
	eventually(t, "etcd is elsewhere", to("10.5.80.0", "10.5.81.0", "12.64.9.0", "12.70.1.0"))
	u.Peers = map[string]*subnet.Record{"10.5.80.0-24": peer("10.5.80.0/24", "12.70.1.15", 14), "12.64.9.0-24": nil}
	r.member.tell(u)
	eventually(t, "the older host has moved into another's subnet", to("10.5.80.0", "10.5.81.0", "12.70.0.0"))
	u.Peers = map[string]*subnet.Record{"10.5.80.0-24": nil}
	r.member.tell(u)
	eventually(t, "it is gone", to("10.5.81.0", "12.70.0.0", "12.70.1.0"))
}

// One lease that lies keeps nobody from starting; a network that covers most hosts is what is wrong itself. Who has
// another does not follow it for one.
func TestNetworkThatCoversHosts(t *testing.T) {
	t.Parallel()
	liar, honest := record("10.5.73.0/24", "10.6.0.12", "vxlan", 0x12), record("10.5.74.0/24", "172.30.0.13", "vxlan", 0x13)
	const next = `{"Network":"10.4.0.0/14","SubnetLen":24,"Backend":{"Type":"vxlan"}}`
	r := newRig(t, t.TempDir())
	r.start(t)
	r.member.tell(news(t, next, map[string]*subnet.Record{"10.5.73.0-24": liar}))
	eventually(t, "it waits", func() bool {
		return strings.Contains(r.Status().Stage, `the network 10.4.0.0/14 covers 10.6.0.12, the public IP of host "10.6.0.12"`)
	})
	r.member.tell(news(t, next, map[string]*subnet.Record{"10.5.73.0-24": liar, "10.5.74.0-24": honest}))
	eventually(t, "it is the lease that lies", func() bool { return r.Status().Ready })

	second := newRig(t, t.TempDir())
	second.start(t)
	second.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": liar, "10.5.74.0-24": honest}))
	eventually(t, "ready", func() bool { return second.Status().Ready })
	second.member.tell(news(t, next, nil))
	eventually(t, "it is not followed", func() bool { s := second.Status(); return s.Degraded && s.Network == vxlanConfig })
	second.member.tell(news(t, next, map[string]*subnet.Record{"10.5.73.0-24": nil}))
	eventually(t, "it is followed when the host is gone", func() bool { s := second.Status(); return !s.Degraded && s.Network == next })
}

// Leases of a network that is not followed are judged as well: those who followed it, or lie, are peers.
func TestPeerOfARefusedNetwork(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.host = func() (Host, error) { return surrounded(), nil }
	r.start(t)
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "ready", func() bool { return r.Status().Ready })
	r.member.tell(news(t, `{"Network":"172.16.0.0/12"}`, map[string]*subnet.Record{
		"172.30.0.0-24": record("172.30.0.0/24", "198.51.100.9", "vxlan", 0x12),
		"172.30.1.0-24": record("172.30.1.0/24", "198.51.100.8", "vxlan", 0x13),
	}))
	eventually(t, "one covers this host, the other does not", func() bool {
		s := r.Status()
		return s.Network == vxlanConfig && len(s.Peers) == 2 && strings.Contains(s.Peers[0].Error, "covers this host's address 172.30.0.11") &&
			slices.Equal(r.kernel.routes(), []string{"172.30.1.0/24 via 172.30.1.0 dev overlay.1"})
	})
}
