package userspace

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/kernel"
)

// BenchmarkPeers measures what peers cost the process: memory, and how long it takes to tell it of them.
func BenchmarkPeers(b *testing.B) {
	for _, bench := range []struct {
		name string
		n    int
		put  func(h *host, n int)
	}{
		{"wireguard", 2000, putWireGuardPeers}, {"wireguard", 10000, putWireGuardPeers}, {"udp", 2000, putUDPPeers}, {"udp", 10000, putUDPPeers},
	} {
		b.Run(fmt.Sprintf("%s/%d", bench.name, bench.n), func(b *testing.B) {
			h := newHost(b)
			h.must(h.WireGuard("overlay-wg", 1420))
			h.must(h.UDP(kernel.UDPTun{Name: kernel.UDPName, Local: loopback, Port: 8285, MTU: 1472}))
			before, err := h.There()
			h.must(err)
			began := time.Now()
			bench.put(h, bench.n)
			b.ReportMetric(time.Since(began).Seconds(), "s")
			after, err := h.There()
			h.must(err)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(after.Resident)/1e6, "MB")
			b.ReportMetric(float64(after.Resident-before.Resident)/1e3/float64(bench.n), "kB/peer")
		})
	}
}

func putWireGuardPeers(h *host, n int) {
	lines := []string{"set=1"}
	for i := range n {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		lines = append(lines, "public_key="+hex.EncodeToString(key), fmt.Sprintf("endpoint=192.0.2.%d:51820", i%250+1), fmt.Sprintf("allowed_ip=10.%d.%d.0/24", i/256, i%256))
	}
	if got := h.wg("overlay-wg", lines...); got != "errno=0\n" {
		h.t.Fatal(got)
	}
}

func putUDPPeers(h *host, n int) {
	var peers []kernel.UDPPeer
	for i := range n {
		a, c := byte(i/256), byte(i)
		peers = append(peers, kernel.UDPPeer{Link: kernel.UDPName, Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, a, c, 0}), 24), Host: netip.AddrFrom4([4]byte{192, 168, a, c})})
	}
	h.must(h.SetUDPPeers(kernel.UDPName, peers, nil))
}
