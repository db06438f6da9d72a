package kernel

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/backend/task"
)

// Status is how far the kernel is from what is desired.
type Status struct {
	InStep    bool         // all is as desired
	Objects   map[Kind]int // desired ones
	Healed    map[Kind]int // how many times since the start an object was brought back that others had changed
	Pending   int          // how many objects are not programmed yet, or wait for their link
	Failed    []Failure    // desired, and tried again, all of them
	UserSpace []string     // the links of ours that a process carries
}

// Several is the owner of what one has given up, and others have not.
const Several = "several"

// Failure is an object that the kernel refused, or that others undo, or whose key another owner has. What stands on a
// link that fails fails with it, and is not told.
type Failure struct {
	Network string // of the owner
	Owner   string // who claimed it first; empty for what is nobody's in particular, as an audit
	Object  string
	Err     error
}

func (s Status) clone() Status {
	s.Objects, s.Healed, s.Failed = maps.Clone(s.Objects), maps.Clone(s.Healed), slices.Clone(s.Failed)
	s.UserSpace = slices.Clone(s.UserSpace)
	return s
}

// same tells whether nobody needs to look at s after seeing t.
func (s Status) same(t Status) bool {
	return s.InStep == t.InStep && s.Pending == t.Pending && maps.Equal(s.Objects, t.Objects) &&
		maps.Equal(s.Healed, t.Healed) && slices.Equal(s.UserSpace, t.UserSpace) && slices.EqualFunc(s.Failed, t.Failed, func(a, b Failure) bool {
		return a.Network == b.Network && a.Owner == b.Owner && a.Object == b.Object && a.Err.Error() == b.Err.Error()
	})
}

// pass is what was done since it was last reported.
type pass struct {
	healed  [kinds]int
	news    [kinds]int // of what was healed, what is to be logged
	example Object     // of that
	failed  int        // objects that had not failed before
	reason  error
	victim  Object
}

// fights are what was brought back or failed again and again since they were last told of.
type fights struct {
	at      time.Time // when to tell of them, and to forget old troubles; zero: there are none
	n       [kinds]int
	example Object
}

// healed counts what others had undone.
func (r *Reconciler) healed(o Object, now time.Time) {
	r.pass.healed[o.Kind()]++
	if r.news(o, nil, now) {
		r.pass.news[o.Kind()]++
		r.pass.example = o
	}
}

// news notes that an object failed with err, or was brought back, and tells whether to log it. What befalls it again and
// again is said once in a while.
func (r *Reconciler) news(o Object, err error, now time.Time) bool {
	if r.fights.at.IsZero() {
		r.fights.at = now.Add(task.Forgotten)
	}
	if r.claims.trackers[o.Kind()].round(o.Key(), err, now) {
		return true
	}
	r.fights.n[o.Kind()]++
	r.fights.example = o
	return false
}

// tellFights says in a line what was fought over since the last, and forgets what was left in peace.
func (r *Reconciler) tellFights(now time.Time) {
	if r.fights.at.IsZero() || now.Before(r.fights.at) {
		return
	}
	if args := counts(r.fights.n); len(args) > 0 {
		r.log.Warn("healed or failed again and again", append(args, "object", r.fights.example.String())...)
	}
	r.fights = fights{}
	for _, t := range r.claims.trackers {
		if t.forget(now) {
			r.fights.at = now.Add(task.Forgotten)
		}
	}
}

// report says what the pass did: in the log, the metrics and Status. A pass that an audit is to complete is not over.
func (r *Reconciler) report() {
	var done pass
	if !r.audit.alone {
		done, r.pass = r.pass, pass{}
	}
	healed := counts(done.news)
	switch {
	case len(healed) == 2 && healed[1] == 1:
		r.log.Info("healed", "kind", healed[0], "object", done.example.String())
	case len(healed) > 0:
		r.log.Info("healed", healed...)
	}
	if done.failed > 0 {
		r.log.Warn("not programmed", "object", done.victim.String(), "err", done.reason, "objects", done.failed)
	}
	r.tellFights(time.Now())
	next, pending := r.measure()

	r.mu.Lock()
	defer r.mu.Unlock()
	next.InStep = next.InStep && len(r.inbox) == 0
	next.Healed = maps.Clone(r.status.Healed)
	if next.Healed == nil {
		next.Healed = map[Kind]int{}
	}
	defer r.tellViews(&next, pending)
	for kind, n := range done.healed {
		if n > 0 {
			next.Healed[Kind(kind)] += n
			r.metrics.Healed.WithLabelValues(Kind(kind).String()).Add(float64(n))
		}
	}
	// tell has cleared InStep on the way: that it is true again is worth a signal.
	if !next.same(r.status) {
		r.status = next
		task.Signal(r.changed)
	}
}

// measure is the status but for what was healed. What waits for a link that is not there to come is pending, what waits for
// one that fails is not. It tells too what is pending of each network's; what is nobody's, as what is to be removed, is of all.
func (r *Reconciler) measure() (s Status, pending map[*network]int) {
	s = Status{Objects: make(map[Kind]int, kinds)}
	pending = map[*network]int{}
	add := func(e *tracked) {
		s.Pending++
		if e.want != nil {
			pending[e.owner.network]++
		} else {
			pending[nil]++
		}
	}
	differing := 0
	for kind, t := range r.claims.trackers {
		s.Objects[Kind(kind)] = t.claimed
		r.metrics.Objects.WithLabelValues(Kind(kind).String()).Set(float64(t.claimed))
		differing += t.differing
		for _, e := range t.pending {
			if e.differs() && (len(t.troubles) == 0 || !t.fails(e.object().Key())) { // at a start they are many, and none fails
				add(e)
			}
		}
		for link := range t.blocked {
			if !r.claims.trackers[KindLink].fails(linkKey(link)) {
				for e := range t.waiting(link) {
					add(e)
				}
			}
		}
		s.Failed = t.failures(s.Failed)
	}
	if r.audit.err != nil {
		s.Failed = append(s.Failed, Failure{Object: "audit", Err: r.audit.err})
	}
	if r.audit.alone {
		s.Pending++
		pending[nil]++
	}
	for _, l := range r.ourLinks() {
		if l.kind == "tun" {
			s.UserSpace = append(s.UserSpace, l.name)
		}
	}
	slices.Sort(s.UserSpace)
	slices.SortFunc(s.Failed, func(a, b Failure) int { return strings.Compare(a.Object+a.Owner, b.Object+b.Owner) })
	s.InStep = s.Pending+differing+len(s.Failed)+len(r.stale) == 0
	return s, pending
}

// failures adds the tracker's to all. What nobody wants, and cannot be removed, is in nobody's way.
func (t *tracker) failures(all []Failure) []Failure {
	for key, tr := range t.troubles {
		if e := t.wanted(key); e != nil && tr.err != nil {
			all = append(all, Failure{e.owner.network.name, e.owner.name, e.want.String(), tr.err})
		}
	}
	for _, waiting := range t.conflicts {
		for _, c := range waiting {
			all = append(all, Failure{c.owner.network.name, c.owner.name, c.value.String(), errClaimed})
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
	task.Metrics
	apply, audit prometheus.Histogram
	sessions     prometheus.Gauge
	turns        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	buckets := prometheus.ExponentialBuckets(0.0005, 4, 8)
	byKind, err := task.NewMetrics(reg)
	m := &metrics{
		Metrics: byKind,
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "overlayd_kernel_apply_seconds", Help: "Time to bring the kernel in step.", Buckets: buckets,
		}),
		audit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "overlayd_kernel_audit_seconds", Help: "Time to compare everything with the kernel.", Buckets: buckets,
		}),
	}
	m.sessions = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "overlayd_wireguard_sessions", Help: "Peers of wireguard links whose last handshake is younger than 275 seconds.",
	})
	m.turns = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "overlayd_wireguard_endpoint_turns_total", Help: "Peers of wireguard links that got another endpoint because they did not answer.",
	})
	for kind := range kinds { // a series that begins with its first event hides that event from rate()
		m.Healed.WithLabelValues(kind.String())
		m.Errors.WithLabelValues(kind.String())
	}
	return m, errors.Join(err, reg.Register(m.apply), reg.Register(m.audit), reg.Register(m.sessions), reg.Register(m.turns))
}
