package kernel

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is how far the kernel is from what is desired.
type Status struct {
	InStep  bool         // all is as desired
	Objects map[Kind]int // desired ones
	Healed  map[Kind]int // how many times since the start an object was brought back that others had changed
	Pending int          // how many objects are not programmed yet, or wait for their link
	Failed  []Failure    // desired, and tried again, all of them
}

// Several is the owner of what one has given up, and others have not.
const Several = "several"

// Failure is an object that the kernel refused, or that others undo, or whose key another owner has. What stands on a
// link that fails fails with it, and is not told.
type Failure struct {
	Owner  string // who claimed it first; empty for what is nobody's in particular, as the firewall
	Object string
	Err    error
}

func (s Status) clone() Status {
	s.Objects, s.Healed, s.Failed = maps.Clone(s.Objects), maps.Clone(s.Healed), slices.Clone(s.Failed)
	return s
}

// same tells whether nobody needs to look at s after seeing t.
func (s Status) same(t Status) bool {
	return s.InStep == t.InStep && s.Pending == t.Pending && maps.Equal(s.Objects, t.Objects) &&
		maps.Equal(s.Healed, t.Healed) && slices.EqualFunc(s.Failed, t.Failed, func(a, b Failure) bool {
		return a.Owner == b.Owner && a.Object == b.Object && a.Err.Error() == b.Err.Error()
	})
}

// report says what the pass did: in the log, the metrics and Status.
func (r *Reconciler) report() {
	healed := counts(r.pass.news)
	switch {
	case len(healed) == 2 && r.pass.example != nil && healed[1] == 1:
		r.log.Info("healed", "kind", healed[0], "object", r.pass.example.String())
	case len(healed) > 0:
		r.log.Info("healed", healed...)
	}
	if r.pass.failed > 0 {
		r.log.Warn("not programmed", "object", r.pass.victim.String(), "err", r.pass.reason, "objects", r.pass.failed)
	}
	r.tellFights(time.Now())
	next := r.measure()

	r.mu.Lock()
	defer r.mu.Unlock()
	next.InStep = next.InStep && len(r.inbox.said) == 0
	next.Healed = maps.Clone(r.status.Healed)
	if next.Healed == nil {
		next.Healed = map[Kind]int{}
	}
	for kind, n := range r.pass.healed {
		if n > 0 {
			next.Healed[Kind(kind)] += n
			r.metrics.healed.WithLabelValues(Kind(kind).String()).Add(float64(n))
		}
	}
	// told has cleared InStep on the way: that it is true again is worth a signal.
	if !next.same(r.status) {
		r.status = next
		signal(r.changed)
	}
}

// measure is the status but for what was healed.
func (r *Reconciler) measure() Status {
	s := Status{Objects: make(map[Kind]int, kinds)}
	unsure := 0
	for kind, t := range r.desired.tables {
		s.Objects[Kind(kind)] = t.claimed
		r.metrics.objects.WithLabelValues(Kind(kind).String()).Set(float64(t.claimed))
		s.Pending += t.count[dirty] + t.count[waiting]
		unsure += t.doubtful + t.count[stuck] + t.count[failed]
		s.Failed = t.failed(s.Failed)
	}
	for _, set := range r.sets {
		if set.waiting || set.due {
			s.Pending++
		}
		if set.failure.err != nil {
			s.Failed = append(s.Failed, Failure{Object: set.kind.String(), Err: set.failure.err})
		}
	}
	if r.auditBy.err != nil {
		s.Failed = append(s.Failed, Failure{Object: "audit", Err: r.auditBy.err})
	}
	slices.SortFunc(s.Failed, func(a, b Failure) int { return strings.Compare(a.Object+a.Owner, b.Object+b.Owner) })
	s.InStep = s.Pending == 0 && unsure == 0 && len(s.Failed) == 0
	return s
}

// failed adds the table's failures to all. What nobody desires, and cannot be removed, is in nobody's way.
func (t *table) failed(all []Failure) []Failure {
	for it, f := range t.failures {
		if it.n > 0 {
			all = append(all, Failure{it.owner, it.value.String(), f.err})
		}
	}
	for _, rivals := range t.rivals {
		for _, rival := range rivals {
			all = append(all, Failure{rival.owner, rival.value.String(), errClaimed})
		}
	}
	return all
}

// counts are the kinds that occur, as arguments for the log.
func counts(n [kinds]int) []any {
	var args []any
	for kind, n := range n {
		if n > 0 {
			args = append(args, Kind(kind).String(), n)
		}
	}
	return args
}

// metrics is what Prometheus sees.
type metrics struct {
	objects      *prometheus.GaugeVec
	healed       *prometheus.CounterVec
	errors       *prometheus.CounterVec
	apply, audit prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	buckets := prometheus.ExponentialBuckets(0.0005, 4, 8)
	m := &metrics{
		objects: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "overlayd_kernel_objects", Help: "Desired kernel objects.",
		}, []string{"kind"}),
		healed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "overlayd_kernel_healed_total", Help: "Kernel objects brought back after others changed them.",
		}, []string{"kind"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "overlayd_kernel_errors_total", Help: "Requests that the kernel refused.",
		}, []string{"kind"}),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "overlayd_kernel_apply_seconds", Help: "Time to bring the kernel in step.", Buckets: buckets,
		}),
		audit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "overlayd_kernel_audit_seconds", Help: "Time to compare everything with the kernel.", Buckets: buckets,
		}),
	}
	for _, c := range []prometheus.Collector{m.objects, m.healed, m.errors, m.apply, m.audit} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	for kind := range kinds { // a series that begins with its first event hides that event from rate()
		m.healed.WithLabelValues(kind.String())
		m.errors.WithLabelValues(kind.String())
	}
	return m, nil
}
