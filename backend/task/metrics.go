package task

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the series of one kind, in vectors that the other kinds of kernel objects are in as well.
type metrics struct {
	objects        prometheus.Gauge
	healed, errors prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, kind string) (metrics, error) {
	byKind := []string{"kind"}
	objects, err := shared(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "overlayd_kernel_objects", Help: "Desired kernel objects.",
	}, byKind))
	if err != nil {
		return metrics{}, err
	}
	healed, err := shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_kernel_healed_total", Help: "Kernel objects brought back after others changed them.",
	}, byKind))
	if err != nil {
		return metrics{}, err
	}
	failed, err := shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_kernel_errors_total", Help: "Requests that the kernel refused.",
	}, byKind))
	if err != nil {
		return metrics{}, err
	}
	return metrics{objects.WithLabelValues(kind), healed.WithLabelValues(kind), failed.WithLabelValues(kind)}, nil
}

// shared registers a vector, or returns the one that is there. A nil registerer keeps none.
func shared[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	if reg == nil {
		return c, nil
	}
	err := reg.Register(c)
	if there, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return there.ExistingCollector.(C), nil
	}
	return c, err
}
