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
	"github.com/overlayd/overlayd/cmd/internal/probe"
	"github.com/overlayd/overlayd/cmd/internal/settings"
	"github.com/overlayd/overlayd/subnet"
)

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	dirs := &cniDirs{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the local daemon is; exit 1 if something needs attention",
		Long: `Show how the local daemon is; exit 1 if something needs attention. With -o wide the peers follow. Whether peers
answer is not known here: see overlayctl peers.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.again(cmd.Context(), watch, func(ctx context.Context) error { return a.showStatus(ctx, dirs) })
		},
	}
	watchFlag(cmd, &watch)
	dirs.registerConf(cmd.Flags())
	return cmd
}

func (a *app) showStatus(ctx context.Context, dirs *cniDirs) error {
	daemon, err := a.askDaemon(ctx)
	if err != nil {
		return err
	}
	living, err := a.living(ctx, dirs)
	if err != nil {
		return err
	}
	s := localStatus{Status: daemon, Stranded: findStranded(living, daemon), Oversized: findOversized(living, daemon)}
	if s.Freed, err = lastFreed(ctx, dirs); err != nil {
		return err
	}
	s.Unguarded, s.Unpoliced = countUnguarded(living, daemon), countUnpoliced(living, daemon)
	attention := !s.Ready || s.Degraded || len(s.Problems) > 0 || len(s.Stranded) > 0 || len(s.Oversized) > 0
	return a.show(s, attention, func(w io.Writer) { a.printStatus(w, s) })
}

// askDaemon asks the local daemon for its status, as it is in the network that is meant.
func (a *app) askDaemon(ctx context.Context) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	s, err := api.Dial(settings.Socket(a.settings.RunDir)).Status(ctx)
	if err != nil || a.overlay == "" {
		return s, err
	}
	return inNetwork(s, a.overlay)
}

// printStatus writes s on about one screen; with -o wide the peers follow.
func (a *app) printStatus(w io.Writer, s localStatus) {
	fields := []field{
		{"HOST", fmt.Sprintf("%s (%s)", s.Host, s.HostID), plain},
		{"DAEMON", fmt.Sprintf("overlayd %s, up %s", s.Version, rough(a.now().Sub(s.Started))), plain},
		statusState(s.Status),
		{"NETWORK", statusNetwork(s.Status), plain},
		a.statusLease(s.Status),
		{"UNDERLAY", statusUnderlay(s.Status), plain},
		statusEtcd(s.Etcd),
		statusKernel(s.Kernel),
		statusPeers(s.Peers),
	}
	if s.FastPath.Mode != "" { // of an older daemon
		fields = append(fields, statusFastPath(s.FastPath))
	}
	if s.WireGuard != nil {
		fields = append(fields, a.statusWireGuard(*s.WireGuard))
	}
	if p := s.Policy; p.Enforcing {
		fields = append(fields, statusPolicy(p))
	}
	if s.Names != nil {
		fields = append(fields, statusNames(*s.Names))
	}
	if s.Unguarded > 0 {
		fields = append(fields, field{"UNGUARDED", fmt.Sprintf("%d containers of an older plugin, until they are made anew", s.Unguarded), plain})
	}
	if s.Unpoliced > 0 {
		fields = append(fields, field{"UNPOLICED", fmt.Sprintf("%d containers are attached by what no policy holds for: docs/attachments.md", s.Unpoliced), uneasy})
	}
	if s.Freed != nil {
		fields = append(fields, field{"FREED", fmt.Sprintf("%d of containers that are gone, %s ago: %s", len(s.Freed.Freed),
			rough(a.now().Sub(s.Freed.At)), s.Freed.Freed[0].ContainerID), plain})
	}
	for _, line := range bound(needsAttention(s)) {
		fields = append(fields, field{"ATTENTION", line, uneasy})
	}
	a.screen.sheet(w, fields)
	a.printNetworks(w, s.Networks)
	if a.output == "wide" && len(s.Peers) > 0 {
		fmt.Fprintln(w)
		row(w, "PEER", "SUBNETS", "PUBLIC-IP", "BACKEND", "PATH", "ERROR")
		for _, p := range s.Peers {
			row(w, p.Host, strings.Join(p.Subnets, ","), strings.Join(p.PublicIPs, ","), p.Backend, p.Path, p.Error)
		}
	}
}

// needsAttention is what the daemon complains of, the peers that it cannot program, and stranded containers. What the
// state says already is not said again.
func needsAttention(s localStatus) []string {
	var lines []string
	for _, line := range s.Problems {
		if !strings.HasSuffix(s.Stage, line) && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	for _, p := range s.Peers {
		if p.Error != "" {
			lines = append(lines, fmt.Sprintf("%s is not reached: %s", peerName(p), p.Error))
		}
	}
	for _, f := range s.Kernel.Failed {
		lines = append(lines, "the kernel refuses "+f)
	}
	for _, x := range s.Stranded {
		lines = append(lines, x.String())
	}
	for _, x := range s.Oversized {
		lines = append(lines, x.String())
	}
	return lines
}

// peerName is how a peer is called in a message: flannel's have no host name.
func peerName(p api.Peer) string {
	if p.Host != "" {
		return p.Host
	}
	return strings.Join(p.Subnets, ",")
}

func statusState(s api.Status) field {
	f := field{"STATE", "ready", good}
	switch {
	case !s.Ready:
		f.value, f.tone = "not ready", bad
	case s.Degraded:
		f.value, f.tone = "degraded", uneasy
	}
	if s.Stage != "" {
		f.value += ": " + strings.TrimPrefix(s.Stage, "degraded: ")
	}
	return f
}

func statusNetwork(s api.Status) string {
	n, err := subnet.ParseNetwork([]byte(s.Network))
	switch {
	case s.Network == "":
		return "not known yet"
	case err != nil:
		return s.Network
	}
	return fmt.Sprintf("%s, backend %s, MTU %d", n, s.Backend, s.MTU)
}

func (a *app) statusLease(s api.Status) field {
	f := field{"LEASE", s.Lease.State, good}
	if s.Lease.State != "held" {
		f.tone = uneasy
	}
	if len(s.Subnets) > 0 {
		f.value = strings.Join(s.Subnets, ", ") + ", " + f.value
	}
	if s.Lease.Reason != "" && !strings.HasSuffix(s.Stage, s.Lease.Reason) {
		f.value += ": " + s.Lease.Reason
	}
	if s.Lease.Expires != nil {
		f.value += ", expires " + expiry(s.Lease.Expires, a.now())
	}
	return f
}

func statusUnderlay(s api.Status) string {
	if s.Underlay == "" {
		return "not known yet"
	}
	return s.Underlay + ", " + strings.Join(s.PublicIP, ", ")
}

func statusEtcd(e api.Etcd) field {
	endpoints := strings.Join(e.Endpoints, ", ")
	if !e.Connected {
		return field{"ETCD", fmt.Sprintf("away (%s): %s", endpoints, e.Error), uneasy}
	}
	return field{"ETCD", fmt.Sprintf("connected to %s, revision %d", endpoints, e.Revision), good}
}

func statusKernel(k api.Kernel) field {
	f := field{"KERNEL", "in step", good}
	switch {
	case !k.InStep && len(k.Objects) == 0:
		f.value, f.tone = "nothing to install yet", plain
	case !k.InStep:
		f.value, f.tone = fmt.Sprintf("not in step, %d pending, %d failed", k.Pending, len(k.Failed)), uneasy
	}
	if len(k.Objects) > 0 {
		f.value += ": " + counts(k.Objects)
	}
	if len(k.Healed) > 0 {
		f.value += "; healed: " + counts(k.Healed)
	}
	return f
}

func statusPolicy(p api.Policy) field {
	f := field{"POLICY", "in force", good}
	switch {
	case !p.InStep:
		f.value, f.tone = "not in force as it should be", bad
	case p.Remembered:
		f.value, f.tone = "in force, as last seen", uneasy
	}
	f.value += fmt.Sprintf(": %d policies, %d of %d containers isolated, %d endpoints elsewhere", p.Policies, p.Isolated, p.Local, p.Peers)
	if len(p.Pending) > 0 {
		f.value += fmt.Sprintf(", %d addresses wait", len(p.Pending))
	}
	if p.Routed {
		f.value += ", and routed: there is no br_netfilter"
	}
	return field{f.name, f.value + fmt.Sprintf("; denied: %d in, %d out", p.Denied.Ingress, p.Denied.Egress), f.tone}
}

func statusPeers(peers []api.Peer) field {
	f := field{"PEERS", "none", plain}
	paths := map[string]int{}
	for _, p := range peers {
		switch {
		case probe.Reserved(p):
			p.Path = "reserved"
		case p.Path == "":
			p.Path, f.tone = "not reached", uneasy
		}
		paths[p.Path]++
	}
	if len(paths) > 0 {
		f.value = fmt.Sprintf("%d: %s", len(peers), counts(paths))
	}
	return f
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
