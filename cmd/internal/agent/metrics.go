package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// register offers the agent's metrics. They are looked up when somebody asks, and cost nothing on the way of an event.
func (a *Agent) register() {
	f := promauto.With(a.cfg.Registerer)
	gauge := func(name, help string, value func() float64) {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			a.mu.Lock()
			defer a.mu.Unlock()
			return value()
		})
	}
	gauge("overlayd_peers", "Other hosts' leases that this host follows.", func() float64 { return float64(len(a.peers)) })
	gauge("overlayd_peers_unreachable", "Peers whose leases make no sense to this host.", func() float64 { return float64(len(a.errs)) })
	gauge("overlayd_ready", "1 if containers can be attached and reach every peer, else 0.", func() float64 {
		if a.ready {
			return 1
		}
		return 0
	})
	gauge("overlayd_problems", "What needs attention; overlayctl status says what.", func() float64 { return float64(len(a.problems)) })
}
