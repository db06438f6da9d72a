package enforcer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// mostDenials are kept for who asks.
const mostDenials = 500

// tell makes the status, and says where that is news.
func (e *Enforcer) tell() {
	k := &e.kernel
	s := api.Policy{
		Enforcing: e.compiler.Enforcing() && e.complete, Policies: count(e.believed.values), Local: len(e.locals), Isolated: e.compiler.Isolated(),
		Unready: string(e.cfg.Options.Unready), InStep: e.complete && k.err == nil && !k.stale, Unreadable: maps.Clone(e.unreadable),
		Doubted: e.believed.doubt(), Remembered: e.complete && !e.heard, Routed: k.routed, Pending: []string{},
	}
	for key := range e.believed.values {
		if strings.HasPrefix(key, etcdstore.NamespaceDir) {
			s.Namespaces++
		}
	}
	s.Peers, s.Refused = e.peers.number()
	for _, addr := range k.pending {
		s.Pending = append(s.Pending, addr.String())
	}
	have, writing := e.cfg.Writer.Status()
	s.Published = len(have)
	err := e.troubles(s, writing)
	if err != nil {
		s.Error = err.Error()
	}
	e.mu.Lock()
	before := e.err
	e.status, e.err = s, err
	e.mu.Unlock()
	if fmt.Sprint(before) != fmt.Sprint(err) {
		task.Signal(e.changed)
	}
}

// troubles are what needs attention.
func (e *Enforcer) troubles(s api.Policy, writing error) error {
	var all []error
	add := func(err error, what string) {
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", what, err))
		}
	}
	if s.Doubted != "" {
		all = append(all, errors.New(s.Doubted))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Unreadable)) {
		all = append(all, fmt.Errorf("policy %s cannot be read, so that it isolates all of its namespace: %s", name, s.Unreadable[name]))
	}
	add(e.kernel.err, "policies are not in force as they should be")
	add(e.kernel.bridge, "policies")
	add(e.localErr, "policies")
	if e.compiler.Enforcing() {
		if e.etcdErr == nil {
			add(writing, "other hosts are not told of this host's containers")
		}
		add(e.memory.err, "policies")
	}
	if e.etcdErr != nil && (etcdstore.Denied(e.etcdErr) || e.compiler.Enforcing() && !e.heard) {
		add(e.etcdErr, "policies cannot be followed")
	}
	if len(all) == 0 {
		return nil
	}
	lines := make([]string, len(all))
	for i, err := range all {
		lines[i] = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return errors.New(strings.Join(lines, "; "))
}

// Status says how far policies are in force.
func (e *Enforcer) Status() api.Policy {
	e.mu.Lock()
	s := e.status
	e.mu.Unlock()
	if s.Enforcing {
		s.Denied = e.denied()
	}
	return s
}

// denied counts what the table has dropped.
func (e *Enforcer) denied() api.Denied {
	dropped, _ := e.cfg.Dropped()
	return api.Denied{Ingress: dropped["denied-in"], Egress: dropped["denied-out"]}
}

// Problem says what needs attention; nil: nothing does.
func (e *Enforcer) Problem() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// in has Run call f; it says no if its loop has ended.
func (e *Enforcer) in(f func()) bool {
	done := make(chan struct{})
	select {
	case e.asked <- func() { f(); close(done) }:
		<-done
		return true
	case <-e.done:
		return false
	}
}

// Endpoints are those of this host, in the order of their namespaces and names.
func (e *Enforcer) Endpoints() []api.Endpoint {
	all := []api.Endpoint{}
	e.in(func() {
		have, _ := e.cfg.Writer.Status()
		for _, l := range e.locals {
			ep := l.Endpoint
			for _, ip := range l.IPs {
				s := e.sides[ip]
				ep.Ingress, ep.Egress = ep.Ingress || s.In != "", ep.Egress || s.Out != ""
				ep.Pending = ep.Pending || slices.Contains(e.kernel.pending, ip)
				if e.host != nil {
					_, there := have[policy.EndpointKey(l.Namespace, e.host.HostID, ip)]
					ep.Published = ep.Published || there
				}
			}
			all = append(all, ep)
		}
	})
	slices.SortFunc(all, func(a, b api.Endpoint) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.ContainerID, b.ContainerID),
			strings.Compare(a.IfName, b.IfName))
	})
	return all
}

// Denials are what policies denied here.
func (e *Enforcer) Denials() api.Denials {
	d := api.Denials{Logged: e.cfg.Options.LogDenied, Last: []api.Denial{}}
	e.in(func() { d.Last = append(d.Last, e.denials...) })
	if e.Status().Enforcing {
		d.Counts = e.denied()
	}
	return d
}

// deny takes note of a packet that was dropped.
func (e *Enforcer) deny(d enforce.Denial) {
	direction := "ingress"
	if d.Egress {
		direction = "egress"
	}
	if len(e.denials) == mostDenials {
		e.denials = slices.Delete(e.denials, 0, mostDenials/4)
	}
	e.denials = append(e.denials, api.Denial{
		At: time.Now(), Direction: direction, From: e.party(d.Src), To: e.party(d.Dst),
		Protocol: protocol(d.Proto), Port: d.Port, Why: e.compiler.Why(d.Src, d.Dst, d.Proto, d.Port),
	})
}

// party names who has an address, as far as it is known here.
func (e *Enforcer) party(ip netip.Addr) api.Party {
	namespace, name := e.compiler.Owner(ip)
	return api.Party{IP: ip.String(), Namespace: namespace, Name: name}
}

func protocol(number uint8) string {
	names := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
	return cmp.Or(names[number], fmt.Sprint(number))
}

// metrics are looked up when somebody asks, but for what is refused.
type metrics struct{ refused *prometheus.CounterVec }

func newMetrics(r prometheus.Registerer, e *Enforcer) metrics {
	f := promauto.With(r)
	for name, g := range map[string]struct {
		help  string
		value func(api.Policy) int
	}{
		"overlayd_policies":                   {"Policies that are in force.", func(s api.Policy) int { return s.Policies }},
		"overlayd_policy_endpoints":           {"Endpoints of other hosts that policies here go by.", func(s api.Policy) int { return s.Peers }},
		"overlayd_policy_endpoints_isolated":  {"Containers of this host that a policy isolates.", func(s api.Policy) int { return s.Isolated }},
		"overlayd_policy_endpoints_pending":   {"Addresses of containers that may do nothing yet.", func(s api.Policy) int { return len(s.Pending) }},
		"overlayd_policy_endpoints_published": {"Endpoints of this host that are in etcd.", func(s api.Policy) int { return s.Published }},
		"overlayd_policies_unreadable":        {"Policies that cannot be read, and isolate their namespaces.", func(s api.Policy) int { return len(s.Unreadable) }},
	} {
		f.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: g.help}, func() float64 {
			e.mu.Lock()
			defer e.mu.Unlock()
			return float64(g.value(e.status))
		})
	}
	m := metrics{f.NewCounterVec(prometheus.CounterOpts{
		Name: "overlayd_policy_endpoints_refused_total",
		Help: "Other hosts' endpoints that do not count, by what is wrong with them.",
	}, []string{"reason"})}
	for _, why := range refusals {
		m.refused.WithLabelValues(string(why))
	}
	return m
}

func (m metrics) refuse(why refusal) { m.refused.WithLabelValues(string(why)).Inc() }
