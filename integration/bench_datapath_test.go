package integration

import (
	"fmt"
	"slices"
	"testing"
)

// loadRounds is how often each of those that are compared is measured with each load, in turn.
const loadRounds = 25

// overlays are the ways from container to container that are measured: each on the fast path, as it is unless told
// otherwise, and without it.
func overlays() []overlay {
	v4, v6 := Stack{V4: true}, Stack{V6: true}
	bridge := map[string]any{"isDefaultGateway": true}
	ways := []overlay{
		{name: "vxlan/IPv4", stack: v4, backend: `{"Type":"vxlan"}`},
		{name: "vxlan/IPv6", stack: v6, backend: `{"Type":"vxlan"}`},
		{name: "vxlan-ptp/IPv4", stack: v4, backend: `{"Type":"vxlan"}`, delegate: map[string]any{"type": "ptp"}},
		{name: "direct/IPv4", stack: v4, backend: `{"Type":"vxlan","DirectRouting":true}`},
		{name: "direct/IPv6", stack: v6, backend: `{"Type":"vxlan","DirectRouting":true}`},
		{name: "host-gw/IPv4", stack: v4, backend: `{"Type":"host-gw"}`},
		{name: "same-host/IPv4", stack: v4, backend: `{"Type":"vxlan"}`, same: true},
		{name: "no-offload/IPv4", stack: v4, backend: `{"Type":"vxlan"}`, script: noTunnelOffload + " gro on"},
		{name: "no-offload-no-gro/IPv4", stack: v4, backend: `{"Type":"vxlan"}`, script: noTunnelOffload + " gro off"},
		{name: "no-offload/IPv6", stack: v6, backend: `{"Type":"vxlan"}`, script: noTunnelOffload + " gro on"},
	}
	var all []overlay
	for _, o := range ways {
		if o.script == "" {
			o.script = ":"
		}
		if o.delegate == nil {
			o.delegate = bridge
		}
		slow := o
		slow.name, slow.slow = o.name+"/slow", [2]bool{true, true}
		all = append(all, o, slow)
		if o.name == "vxlan/IPv4" {
			sends, receives := o, o
			sends.name, sends.slow = o.name+"/sender-only", [2]bool{false, true}
			receives.name, receives.slow = o.name+"/receiver-only", [2]bool{true, false}
			all = append(all, sends, receives)
		}
	}
	return all
}

// BenchmarkDatapath measures container to container over each backend, and over what flannel programs, against host to
// host of the same family. Both hosts are one machine, and most of the way of a packet is the work of the CPU that
// sends it: between machines, which share that work, rates are nearer to each other than here.
func BenchmarkDatapath(b *testing.B) {
	paths := []path{
		newHostPath(b, "host/IPv4", Stack{V4: true}),
		newHostPath(b, "host/IPv6", Stack{V6: true}),
		newFlannelPath(b, "flannel/IPv4"),
	}
	for _, o := range overlays() {
		paths = append(paths, newOverlayPath(b, o))
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
		p.checkFast(b)
		b.Run(p.name, func(b *testing.B) {
			host := seen[0]
			if p.dst.Is6() {
				host = seen[1]
			}
			seen[i].report(b, host)
		})
	}
}

// BenchmarkDatapathChoice measures vxlan on the slow way with each choice taken against the same without, and "nothing" for how much two
// measurements of the same differ.
func BenchmarkDatapathChoice(b *testing.B) {
	for _, w := range wires {
		p := newOverlayPath(b, overlay{
			name: "vxlan", stack: Stack{V4: true}, backend: `{"Type":"vxlan"}`, slow: [2]bool{true, true},
			delegate: map[string]any{"isDefaultGateway": true}, script: w.do,
		})
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
