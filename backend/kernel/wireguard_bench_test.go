package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// wgOwners are a link and n peers.
func (h *wgHost) owners(n int) []Claim {
	all := []Claim{{"self", h.self(0)}}
	for i := 1; i <= n; i++ {
		p := h.peer(i, Secret{}, fmt.Sprintf("192.0.2.%d:%d", i%250+1, 10000+i))
		p.Public = WGKey(newSecret()) // any 32 bytes are one
		p.Allowed = [2]netip.Prefix{overlays()[0].subnet(i), overlays()[1].subnet(i)}
		all = append(all, Claim{fmt.Sprintf("peer%d", i), []Object{p}})
	}
	return all
}

// BenchmarkWireGuard brings peers to a wireguard link, by a Reconciler and by wgctrl alone in batches, and tells the ratio
// of the two; then how long it takes until one more is there, a look tells of all, a restart knows them, and all are gone.
// The link is the kernel's or, where that has none, of wireguard-go in this process.
func BenchmarkWireGuard(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			var ours, theirs, one, again, look, gone time.Duration
			since := func(sum *time.Duration, f func()) {
				begin := time.Now()
				f()
				*sum += time.Since(begin)
			}
			for b.Loop() {
				h := wgBenchHost(b)
				all := h.owners(n)
				since(&ours, func() { h.Replace("", all); h.soon() })
				since(&one, func() { h.Update("", []Claim{{"one", []Object{h.peer(64_000, newSecret())}}}); h.soon() })
				since(&look, func() {
					if d := h.device(); len(d.Peers) != n+1 {
						b.Errorf("%d peers", len(d.Peers))
					}
				})
				h.stop()
				h.running = startConfig(b, Config{Namespace: h.ns, UserSpace: h.users})
				since(&again, func() { h.Replace("", all); h.soon() })
				since(&gone, func() { h.Replace("", nil); h.soon() })
				h.stop()

				h = wgBenchHost(b)
				batches := slices.Collect(slices.Chunk(wgConfigs(all), 500))
				since(&theirs, func() {
					for _, peers := range batches {
						h.set(wgtypes.Config{Peers: peers})
					}
				})
				h.stop()
				nstest.Sh(b, h.ns, "ip link del "+h.link.Name)
			}
			per := float64(b.N)
			b.ReportMetric(ours.Seconds()/per, "s/reconciler")
			b.ReportMetric(theirs.Seconds()/per, "s/wgctrl")
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
			b.ReportMetric(1000*one.Seconds()/per, "ms/update")
			b.ReportMetric(1000*look.Seconds()/per, "ms/look")
			b.ReportMetric(again.Seconds()/per, "s/restart")
			b.ReportMetric(gone.Seconds()/per, "s/gone")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// wgBenchHost is a host with a link, and no peer.
func wgBenchHost(b *testing.B) *wgHost {
	ns := testHost(b)
	users := newInProcess(b, ns)
	h := &wgHost{startConfig(b, Config{Namespace: ns, UserSpace: users}), wgLink(), users}
	h.Replace("", h.owners(0))
	h.soon()
	return h
}

// soon waits for more than inStep does.
func (h *wgHost) soon() {
	h.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !h.Status().InStep; {
		select {
		case <-h.Changed():
		case <-time.After(time.Until(end)):
			h.t.Fatalf("not in step: %+v", h.Status())
		}
	}
}

// wgConfigs are the peers among all as wgctrl takes them.
func wgConfigs(all []Claim) (peers []wgtypes.PeerConfig) {
	for _, c := range all[1:] {
		p := c.Objects[0].(WGPeer)
		peers = append(peers, wgtypes.PeerConfig{
			PublicKey: wgtypes.Key(p.Public), Endpoint: net.UDPAddrFromAddrPort(p.Endpoints[0]), ReplaceAllowedIPs: true,
			AllowedIPs: []net.IPNet{ipNet(p.Allowed[0]), ipNet(p.Allowed[1])},
		})
	}
	return peers
}
