package agent

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/sysctl"
	"github.com/overlayd/overlayd/subnet"
)

// manyPeers are n hosts of a network 10.0.0.0/8, each with a MAC of its own.
func manyPeers(n int) map[string]*subnet.Record {
	peers := make(map[string]*subnet.Record, n)
	for i := range n {
		r := record(fmt.Sprintf("10.%d.%d.0/24", 1+i>>8, i&255), fmt.Sprintf("172.%d.%d.%d", 16+i>>16, i>>8&255, i&255), "vxlan", 0)
		r.Endpoints[0].Data = json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:01:00:%02x:%02x:%02x","Port":8472}`, i>>16, i>>8&255, i&255))
		r.CreateRevision = int64(i + 10)
		peers[r.Key()] = r
	}
	return peers
}

// BenchmarkPlan plans all peers as at a start, and one that changes.
func BenchmarkPlan(b *testing.B) {
	const config = `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}`
	network, err := subnet.ParseNetwork([]byte(config))
	if err != nil {
		b.Fatal(err)
	}
	peers := manyPeers(60_000)
	planner, err := newPlanner(network, testHost("192.168.0.11"))
	if err != nil {
		b.Fatal(err)
	}
	newAgent := func() *Agent {
		k := newFakeKernel()
		a := New(Config{
			Kernel: k, OnLink: k.OnLink, State: NewState(), Log: slog.New(slog.DiscardHandler), Policy: noPolicy{}, Commands: noCommands{},
			Firewall: newFakeWhole[firewall.Rule](), Sysctls: newFakeWhole[sysctl.Param](),
			Elements: &fakeElements{claims: map[string][]firewall.Element{}}, Fast: &fakeFast{claims: map[string][]fastpath.Peer{}},
			EtcdAddrs: func() []netip.Addr { return nil }, Settled: func() {},
		})
		a.own = record("10.255.0.0/24", "192.168.0.11", "vxlan", 1)
		a.network, a.planner = &network, planner
		return a
	}
	b.Run("peers=60000", func(b *testing.B) {
		for b.Loop() {
			a := newAgent()
			a.absorbPeers(peers)
			a.program()
		}
	})
	b.Run("one-of-60000", func(b *testing.B) {
		a := newAgent()
		a.absorbPeers(peers)
		a.program()
		one := slices.Collect(maps.Values(peers))[0]
		for i := 0; b.Loop(); i++ {
			next := *one
			next.ModRevision = int64(i)
			next.Endpoints = slices.Clone(one.Endpoints)
			next.Endpoints[0].PublicIP = netip.AddrFrom4([4]byte{172, 31, byte(i >> 8), byte(i)})
			a.advance(false, a.absorbPeers(map[string]*subnet.Record{one.Key(): &next}))
		}
	})
}
