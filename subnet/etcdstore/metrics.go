package etcdstore

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics is what a Member counts.
type metrics struct {
	leases prometheus.Gauge
	up     prometheus.Gauge
	errors *prometheus.CounterVec // by kind
	events prometheus.Counter
}

// Kinds of lease errors, as the metric overlayd_lease_errors_total names them.
const (
	kindSkipped   = "skipped" // a key that is no lease of the network
	kindConfig    = "config"  // a network config that cannot be read
	kindTaken     = "taken"   // the own subnet belongs to another host
	kindLost      = "lost"    // the own key or its etcd lease was gone
	kindRace      = "race"    // another host was faster
	kindFull      = "out_of_subnets"
	kindDuplicate = "duplicate_address" // another host announces our address
	kindVanish    = "vanished"          // a peer that is held because it vanished with others
	kindEtcd      = "etcd"              // etcd did not answer, or refused
)

var kinds = []string{
	kindSkipped, kindConfig, kindTaken, kindLost, kindRace, kindFull, kindDuplicate, kindVanish, kindEtcd,
}

// newMetrics registers with reg; nil: nowhere.
func newMetrics(reg prometheus.Registerer, m *Member) *metrics {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "overlayd_lease_remaining_seconds",
		Help: "Seconds until the host's own lease ends unless it is renewed; +Inf if it does not expire, 0 if there is none.",
	}, m.remaining)
	counted := &metrics{
		leases: f.NewGauge(prometheus.GaugeOpts{
			Name: "overlayd_leases",
			Help: "Leases of the network in etcd, the own one included.",
		}),
		up: f.NewGauge(prometheus.GaugeOpts{
			Name: "overlayd_etcd_up",
			Help: "1 if etcd answers, else 0.",
		}),
		errors: f.NewCounterVec(prometheus.CounterOpts{
			Name: "overlayd_lease_errors_total",
			Help: "What went wrong with leases, by kind.",
		}, []string{"kind"}),
		events: f.NewCounter(prometheus.CounterOpts{
			Name: "overlayd_etcd_events_total",
			Help: "Changes of keys that etcd told of.",
		}),
	}
	for _, kind := range kinds { // a series that begins with its first error hides that error from rate()
		counted.errors.WithLabelValues(kind)
	}
	return counted
}

func (m *metrics) failed(kind string) { m.errors.WithLabelValues(kind).Inc() }

// remaining is overlayd_lease_remaining_seconds.
func (m *Member) remaining() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	own := m.out.Own
	switch {
	case own.State != Held:
		return 0
	case own.Record.LeaseID == 0:
		return math.Inf(1)
	}
	return max(0, time.Until(own.Expires).Seconds())
}
