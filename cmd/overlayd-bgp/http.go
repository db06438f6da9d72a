package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// listen opens the address for people and Prometheus, and returns what serves it until ctx ends.
func (p *announcer) listen() (serve func(context.Context) error, err error) {
	if p.cfg.HTTP == "" {
		return func(context.Context) error { return nil }, nil
	}
	l, err := net.Listen("tcp", p.cfg.HTTP)
	if err != nil {
		return nil, fmt.Errorf("http: %w", err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), p)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	fine := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }
	mux.HandleFunc("GET /healthz", fine)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		for _, n := range p.status().Neighbors {
			if n.State == established {
				fine(w, r)
				return
			}
		}
		http.Error(w, "there is no session with any router", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(p.status())
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("http: %w", err)
		}
		return nil
	}, nil
}

var (
	routesDesc  = prometheus.NewDesc("overlayd_bgp_routes", "Routes that are announced.", nil, nil)
	refusedDesc = prometheus.NewDesc("overlayd_bgp_refused_leases", "Leases that are not announced because they make no sense.", nil, nil)
	etcdDesc    = prometheus.NewDesc("overlayd_bgp_etcd_up", "Whether the leases in etcd are followed.", nil, nil)
	upDesc      = prometheus.NewDesc("overlayd_bgp_session_up", "Whether the session with a router is established.", []string{"router"}, nil)
)

// Describe implements prometheus.Collector.
func (p *announcer) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{routesDesc, refusedDesc, etcdDesc, upDesc} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (p *announcer) Collect(c chan<- prometheus.Metric) {
	s := p.status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(routesDesc, float64(len(s.Routes)))
	gauge(refusedDesc, float64(len(s.Refused)))
	gauge(etcdDesc, truth(s.Etcd == ""))
	for _, n := range s.Neighbors {
		gauge(upDesc, truth(n.State == established), n.Address.String())
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// printStatus asks the running overlayd-bgp how it stands, and prints that for people.
func printStatus(ctx context.Context, address string, w io.Writer) error {
	if address == "" {
		return errors.New(`http is "" in the configuration: there is nothing to ask`)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("overlayd-bgp does not answer: %w: does it run? systemctl status overlayd-bgp", err)
	}
	defer resp.Body.Close()
	var s status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return fmt.Errorf("http://%s is not overlayd-bgp: %w", address, err)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROUTER\tAS\tSTATE\tFOR\tLAST ENDED BY")
	for _, n := range s.Neighbors {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", n.Address, n.AS, n.State, time.Since(n.Since).Round(time.Second), n.Reason)
	}
	fmt.Fprintln(t, "\nSUBNET\tNEXT HOP")
	for _, dst := range slices.SortedFunc(maps.Keys(s.Routes), netip.Prefix.Compare) {
		fmt.Fprintf(t, "%s\t%s\n", dst, s.Routes[dst])
	}
	if len(s.Refused) > 0 {
		fmt.Fprintln(t, "\nNOT ANNOUNCED\tWHY")
		for _, key := range slices.Sorted(maps.Keys(s.Refused)) {
			fmt.Fprintf(t, "%s\t%s\n", key, s.Refused[key])
		}
	}
	if s.Etcd != "" {
		fmt.Fprintf(t, "\netcd cannot be followed: %s\n", s.Etcd)
	}
	return t.Flush()
}
