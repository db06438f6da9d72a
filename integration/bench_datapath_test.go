package integration

import (
	"fmt"
	"slices"
	"testing"
)

// loadRounds is how often each of those that are compared is measured with each load, in turn.
const loadRounds = 25

// BenchmarkDatapath measures container to container over each backend, and over what flannel programs, against host to
// host of the same family. Both hosts are one machine, and most of the way of a packet is the work of the CPU that
// sends it: between machines, which share that work, rates are nearer to each other than here.
func BenchmarkDatapath(b *testing.B) {
	v4, v6 := Stack{V4: true}, Stack{V6: true}
	bridge := map[string]any{"isDefaultGateway": true}
	ptp := map[string]any{"type": "ptp"}
	paths := []path{
		newHostPath(b, "host/IPv4", v4),
		newHostPath(b, "host/IPv6", v6),
		newFlannelPath(b, "flannel/IPv4"),
		newOverlayPath(b, "vxlan/IPv4", v4, `{"Type":"vxlan"}`, bridge),
		newOverlayPath(b, "vxlan/IPv6", v6, `{"Type":"vxlan"}`, bridge),
		newOverlayPath(b, "vxlan-ptp/IPv4", v4, `{"Type":"vxlan"}`, ptp),
		newOverlayPath(b, "direct/IPv4", v4, `{"Type":"vxlan","DirectRouting":true}`, bridge),
		newOverlayPath(b, "host-gw/IPv4", v4, `{"Type":"host-gw"}`, bridge),
	}
	seen := make([]samples, len(paths))
	for range loadRounds {
		for k := range loads {
			for i, p := range paths {
				seen[i].take(b, k, p)
			}
		}
	}
	for i, p := range paths {
		b.Run(p.name, func(b *testing.B) {
			host := seen[0]
			if p.dst.Is6() {
				host = seen[1]
			}
			seen[i].report(b, host)
		})
	}
}

// BenchmarkDatapathChoice measures vxlan with each choice taken against the same without, and "nothing" for how much two
// measurements of the same differ.
func BenchmarkDatapathChoice(b *testing.B) {
	for _, w := range wires {
		p := newOverlayPath(b, "vxlan", Stack{V4: true}, `{"Type":"vxlan"}`, map[string]any{"isDefaultGateway": true})
		p.onHosts(b, w.do)
		for _, c := range choices {
			b.Run(w.name+"/"+c.name, func(b *testing.B) {
				var with, without samples
				for range loadRounds {
					p.onHosts(b, c.do)
					with.takeAll(b, p)
					p.onHosts(b, c.undo)
					without.takeAll(b, p)
				}
				with.report(b, without)
			})
		}
	}
}

// onHosts runs a script of the shell on both hosts; $dir is a directory of each.
func (p path) onHosts(b *testing.B, script string) {
	b.Helper()
	for _, h := range p.hosts {
		h.Exec("sh", "-ec", "dir="+h.State+"\n"+script)
	}
}

// samples are what was measured on one way: of each load, each round.
type samples [len(loads)][]load

func (s *samples) take(b *testing.B, k int, p path) {
	b.Helper()
	s[k] = append(s[k], loads[k].run(b, p.from, p.to, p.dst))
}

func (s *samples) takeAll(b *testing.B, p path) {
	b.Helper()
	for k := range loads {
		s.take(b, k, p)
	}
}

// report tells medians, and medians of each round's ratio to the base.
func (s *samples) report(b *testing.B, base samples) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for k, l := range loads {
		b.ReportMetric(middle(s[k], rate), fmt.Sprintf("%s-%s/s", l.name, l.unit))
		b.ReportMetric(against(s[k], base[k], rate), l.name+"-rate-ratio")
		b.ReportMetric(1e6*middle(s[k], cost), fmt.Sprintf("%s-cpu-µs/%s", l.name, l.unit))
		b.ReportMetric(against(s[k], base[k], cost), l.name+"-cpu-ratio")
		if s[k][0].latencies != nil {
			b.ReportMetric(1e6*middle(s[k], p99), l.name+"-p99-µs")
			b.ReportMetric(against(s[k], base[k], p99), l.name+"-p99-ratio")
		}
	}
}

func rate(l load) float64 { return l.count / l.seconds }
func cost(l load) float64 { return l.cpu / l.count }
func p99(l load) float64  { return quantile(l.latencies, 0.99).Seconds() }

// middle is the median of a figure over the rounds.
func middle(rounds []load, figure func(load) float64) float64 {
	var all []float64
	for _, l := range rounds {
		all = append(all, figure(l))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// against is the median of the ratios of a figure to that of the same round of base.
func against(rounds, base []load, figure func(load) float64) float64 {
	var all []float64
	for i, l := range rounds {
		all = append(all, figure(l)/figure(base[i]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}
