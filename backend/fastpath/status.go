package fastpath

import (
	"net/netip"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// ways are the names of fastpath.c's enum, as far as packets are counted.
var ways = []string{
	"", "sent", "received", "elsewhere", "protocol", "size", "ttl", "source", "container", "first", "translated", "unseen",
	"congested", "gone", "refused",
}

// Status tells what the fast path does.
func (p *Path) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{
		Off: p.whyOff(), Containers: len(p.containers), Slow: slices.Clone(p.slow), Packets: p.packets(), ByPeer: map[netip.Prefix]PeerPackets{},
	}
	subnets := map[uint32]netip.Prefix{}
	for subnet, e := range p.peers {
		if e.fast() {
			s.Peers++
			subnets[e.had.Id] = subnet
		}
	}
	var id uint32
	var counts []programTraffic // of each CPU
	for i := p.kernel.Traffics.Iterate(); i.Next(&id, &counts); {
		if subnet, ok := subnets[id]; ok {
			var sum PeerPackets
			for _, c := range counts {
				sum.Sent, sum.Received = sum.Sent+c.Sent, sum.Received+c.Received
			}
			s.ByPeer[subnet] = sum
		}
	}
	return s
}

// packets counts packets by the way they took.
func (p *Path) packets() map[string]uint64 {
	all := make(map[string]uint64, len(ways))
	for i, way := range ways {
		var counts []uint64 // of each CPU
		if way == "" || p.kernel.Ways.Lookup(uint32(i), &counts) != nil {
			continue
		}
		var sum uint64
		for _, n := range counts {
			sum += n
		}
		all[way] = sum
	}
	return all
}

// collector is what Prometheus sees of the packets.
type collector struct{ *Path }

var packetsTotal = prometheus.NewDesc("overlayd_fastpath_packets_total",
	"Packets that the fast path looked at, by the way they took: sent and received are fast, all others say why they are slow.", []string{"way"}, nil)

// Describe implements prometheus.Collector.
func (collector) Describe(to chan<- *prometheus.Desc) { to <- packetsTotal }

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	for way, n := range c.packets() {
		to <- prometheus.MustNewConstMetric(packetsTotal, prometheus.CounterValue, float64(n), way)
	}
}
