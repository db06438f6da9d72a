package task

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what Prometheus sees of the kernel's objects, by their kind.
type Metrics struct {
	Objects        *prometheus.GaugeVec
	Healed, Errors *prometheus.CounterVec
}

// NewMetrics registers the vectors, or returns those that are there: every kind is in the same. A nil registerer keeps none.
func NewMetrics(reg prometheus.Registerer) (m Metrics, err error) {
	if reg == nil {
		reg = prometheus.NewRegistry()
	}
	byKind := []string{"kind"}
	objects, objectsErr := shared(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "overlayd_kernel_objects", Help: "Desired kernel objects.",
	}, byKind))
	healed, healedErr := shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_kernel_healed_total", Help: "Kernel objects brought back after others changed them.",
	}, byKind))
	refused, refusedErr := shared(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_kernel_errors_total", Help: "Requests that the kernel refused.",
	}, byKind))
	return Metrics{objects, healed, refused}, errors.Join(objectsErr, healedErr, refusedErr)
}

func shared[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	if there, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return there.ExistingCollector.(C), nil
	}
	return c, err
}
