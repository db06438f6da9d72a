package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet"
)

// aged is a peer whose lease was made at a revision.
func aged(subnetText, ip string, mac byte, revision int64) *subnet.Record {
	r := record(subnetText, ip, "vxlan", mac)
	r.CreateRevision = revision
	return r
}

// Of two leases with one MAC the older one counts, whichever came first, and as long as it is there.
func TestTwoPeersOfOneMAC(t *testing.T) {
	t.Parallel()
	const low, high, third = "10.5.73.0-24", "10.5.74.0-24", "10.5.75.0-24"
	toLow, toHigh, toThird := "10.5.73.0/24 via 10.5.73.0 dev overlay.1", "10.5.74.0/24 via 10.5.74.0 dev overlay.1", "10.5.75.0/24 via 10.5.75.0 dev overlay.1"
	young, old, middle := aged("10.5.73.0/24", "172.30.0.12", 0x22, 20), aged("10.5.74.0/24", "172.30.0.13", 0x22, 10), aged("10.5.75.0/24", "172.30.0.14", 0x22, 15)
	r := newRig(t, t.TempDir())
	r.start(t)
	culprit := func(i int, owner string) {
		t.Helper()
		s := r.Status()
		if !s.Ready || len(s.Problems) > 0 || !strings.Contains(s.Peers[i].Error, "VtepMAC 02:00:00:00:00:22 is that of host \""+owner) {
			t.Errorf("%+v, want peer %d to be named as the one that has the MAC of %s", s, i, owner)
		}
	}
	routes := func(what string, want ...string) {
		t.Helper()
		eventually(t, what, func() bool { return slices.Equal(r.kernel.routes(), want) })
	}
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{low: young, high: old}))
	routes("at a start the older one is reached", toHigh)
	eventually(t, "ready", func() bool { return r.Status().Ready })
	culprit(0, "172.30.0.13")

	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{high: nil}))
	routes("the younger one is reached when the other is gone", toLow)
	if s := r.Status(); s.Degraded {
		t.Errorf("degraded with one peer of each MAC: %+v", s)
	}
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{third: middle}))
	routes("an older one takes over", toThird)
	culprit(0, "172.30.0.14")
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{high: old}))
	routes("and one that is older still", toHigh)
	culprit(2, "172.30.0.13")

	other := *old
	other.Lease = aged("10.5.74.0/24", "172.30.0.13", 0x33, 10).Lease
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{high: &other}))
	routes("with a MAC of its own it is no rival", toHigh, toThird)
	culprit(0, "172.30.0.14")
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{low: nil, third: nil}))
	routes("all others are gone", toHigh)
	r.Agent.mu.Lock()
	defer r.Agent.mu.Unlock()
	if claims := slices.Collect(maps.Values(r.claims)); len(claims) != 1 || !slices.Equal(claims[0], []string{high}) {
		t.Errorf("claims %v, want that of one peer", claims)
	}
}

// A host that moves from one lease to another has both for a while, with its MAC, and is reached by both.
func TestTwoLeasesOfOneHost(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{
		"10.5.73.0-24": aged("10.5.73.0/24", "172.30.0.12", 0x22, 20), "10.5.74.0-24": aged("10.5.74.0/24", "172.30.0.12", 0x22, 10),
	}))
	want := []string{"10.5.73.0/24 via 10.5.73.0 dev overlay.1", "10.5.74.0/24 via 10.5.74.0 dev overlay.1"}
	eventually(t, "both are reached", func() bool { return slices.Equal(r.kernel.routes(), want) })
	if s := r.Status(); s.Degraded {
		t.Errorf("degraded: %+v", s)
	}
}

// The host itself is one of those who can have a MAC of another.
func TestPeerWithOurMAC(t *testing.T) {
	t.Parallel()
	const key, to = "10.5.73.0-24", "10.5.73.0/24 via 10.5.73.0 dev overlay.1"
	r := newRig(t, t.TempDir())
	own := testHost("172.30.0.11").Host.VTEP[1] // 02:01:…
	twin := func(revision int64) *subnet.Record {
		p := aged("10.5.73.0/24", "172.30.0.12", 0, revision)
		p.Endpoints[0].Data = []byte(strings.Replace(string(p.Endpoints[0].Data), "02:00:", "02:01:", 1))
		return p
	}
	if own != 1 {
		t.Fatal("the host's MAC is another")
	}
	r.start(t)
	first := news(t, vxlanConfig, map[string]*subnet.Record{key: twin(20)})
	first.Own.Record.CreateRevision = 10
	r.member.tell(first)
	eventually(t, "the younger peer is the one that is wrong", func() bool {
		s := r.Status()
		return s.Ready && len(s.Problems) == 0 && len(s.Peers) == 1 && strings.Contains(s.Peers[0].Error, "whose lease is older")
	})
	again := first
	again.Own.Record.CreateRevision, again.Peers = 30, nil
	r.member.tell(again)
	eventually(t, "the host that claimed its lease again is the younger one", func() bool {
		s := r.Status()
		return s.Ready && strings.Contains(strings.Join(s.Problems, "\n"), `is that of host "172.30.0.12" (172.30.0.12) at 172.30.0.12, whose lease is older`)
	})
	again.Peers = map[string]*subnet.Record{key: aged("10.5.73.0/24", "172.30.0.12", 0x12, 20)}
	r.member.tell(again)
	eventually(t, "all is well with another MAC", func() bool { return !r.Status().Degraded && slices.Equal(r.kernel.routes(), []string{to}) })
}

// A peer of both families makes two claims, and gives up both.
func TestTwoPeersOfOneMACInBothFamilies(t *testing.T) {
	t.Parallel()
	const config = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}`
	both := func(r *subnet.Record, subnetText, ip string) *subnet.Record {
		e := subnet.Endpoint{Subnet: netip.MustParsePrefix(subnetText), PublicIP: netip.MustParseAddr(ip), Data: r.Endpoints[0].Data}
		r.Endpoints = append(r.Endpoints, e)
		return r
	}
	r := newRig(t, t.TempDir())
	host := testHost("172.30.0.11")
	host.Addrs[subnet.IPv6] = netip.MustParseAddr("2001:db8::11")
	r.host = func() (Host, error) { return host, nil }
	r.start(t)
	old := both(aged("10.5.74.0/24", "172.30.0.13", 0x22, 10), "fd00:5:0:74::/64", "2001:db8::13")
	young := both(aged("10.5.73.0/24", "172.30.0.12", 0x22, 20), "fd00:5:0:73::/64", "2001:db8::12")
	u := news(t, config, map[string]*subnet.Record{young.Key(): young, old.Key(): old})
	both(&u.Own.Record, "fd00:5:0:72::/64", "2001:db8::11")
	r.member.tell(u)
	routes := func(what string, slots ...string) {
		t.Helper()
		eventually(t, what, func() bool {
			var want []string
			for _, s := range slots {
				want = append(want, fmt.Sprintf("10.5.%[1]s.0/24 via 10.5.%[1]s.0 dev overlay.1", s), fmt.Sprintf("fd00:5:0:%[1]s::/64 via fd00:5:0:%[1]s:: dev overlay6.1", s))
			}
			slices.Sort(want)
			return slices.Equal(r.kernel.routes(), want)
		})
	}
	routes("the older one is reached", "74")
	u.Peers = map[string]*subnet.Record{old.Key(): nil}
	r.member.tell(u)
	routes("the younger one is reached when it is gone", "73")
	u.Peers = map[string]*subnet.Record{old.Key(): old}
	r.member.tell(u)
	routes("it is back", "74")
	u.Peers = map[string]*subnet.Record{old.Key(): nil, young.Key(): nil}
	r.member.tell(u)
	routes("both are gone")
	r.Agent.mu.Lock()
	defer r.Agent.mu.Unlock()
	if len(r.claims) > 0 || len(r.Agent.errs) > 0 {
		t.Errorf("claims %v, errors %v, want none", r.claims, r.errs)
	}
}
