package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the local daemon is; exit 1 if something needs attention",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			s, err := a.daemon().Status(ctx)
			if err != nil {
				return err
			}
			if err := a.print(s, func(w io.Writer) { a.printStatus(w, s) }); err != nil {
				return err
			}
			if !s.Ready || s.Degraded || len(s.Problems) > 0 {
				return errAttention
			}
			return nil
		},
	}
}

// printStatus writes s on about one screen; with -o wide the peers follow.
func (a *app) printStatus(w io.Writer, s api.Status) {
	row(w, "HOST", fmt.Sprintf("%s (%s)", s.Host, s.HostID))
	row(w, "DAEMON", fmt.Sprintf("overlayd %s, up %s", s.Version, rough(a.now().Sub(s.Started))))
	row(w, "STATE", statusState(s))
	row(w, "NETWORK", s.Network)
	row(w, "SUBNETS", strings.Join(s.Subnets, ", "))
	row(w, "LEASE", a.statusLease(s.Lease))
	row(w, "BACKEND", fmt.Sprintf("%s, MTU %d", s.Backend, s.MTU))
	row(w, "UNDERLAY", fmt.Sprintf("%s, %s", s.Underlay, strings.Join(s.PublicIP, ", ")))
	row(w, "ETCD", statusEtcd(s.Etcd))
	row(w, "KERNEL", statusKernel(s.Kernel))
	row(w, "PEERS", statusPeers(s.Peers))
	for _, line := range bound(s.Problems) {
		row(w, "PROBLEM", line)
	}
	for _, line := range bound(s.Kernel.Failed) {
		row(w, "FAILED", line)
	}
	if a.output == "wide" && len(s.Peers) > 0 {
		fmt.Fprintln(w)
		row(w, "PEER", "SUBNETS", "PUBLIC-IP", "BACKEND", "PATH", "ERROR")
		for _, p := range s.Peers {
			row(w, p.Host, strings.Join(p.Subnets, ","), strings.Join(p.PublicIPs, ","), p.Backend, p.Path, p.Error)
		}
	}
}

func statusState(s api.Status) string {
	state := "ready"
	switch {
	case !s.Ready:
		state = "not ready"
	case s.Degraded:
		state = "degraded"
	}
	if s.Stage != "" {
		state += ": " + s.Stage
	}
	return state
}

func (a *app) statusLease(l api.Lease) string {
	text := l.State
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	if l.Expires != nil {
		text += ", expires " + expiry(l.Expires, a.now())
	}
	return text
}

func statusEtcd(e api.Etcd) string {
	endpoints := strings.Join(e.Endpoints, ",")
	if !e.Connected {
		return fmt.Sprintf("away (%s): %s", endpoints, e.Error)
	}
	return fmt.Sprintf("connected to %s, revision %d", endpoints, e.Revision)
}

func statusKernel(k api.Kernel) string {
	text := "in step"
	if !k.InStep {
		text = fmt.Sprintf("not in step, %d pending, %d failed", k.Pending, len(k.Failed))
	}
	if len(k.Objects) > 0 {
		text += ": " + counts(k.Objects)
	}
	if len(k.Healed) > 0 {
		text += "; healed: " + counts(k.Healed)
	}
	return text
}

func statusPeers(peers []api.Peer) string {
	paths := map[string]int{}
	for _, p := range peers {
		if p.Path == "" {
			p.Path = "not reached"
		}
		paths[p.Path]++
	}
	if len(paths) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d: %s", len(peers), counts(paths))
}

// counts is "3 link, 12 route", in the order of the names.
func counts(m map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d %s", m[name], name))
	}
	return strings.Join(parts, ", ")
}

// expiry is "in 23h", "now", or "never" for nil.
func expiry(at *time.Time, now time.Time) string {
	if at == nil {
		return "never"
	}
	if left := at.Sub(now); left >= time.Second {
		return "in " + rough(left)
	}
	return "now"
}
