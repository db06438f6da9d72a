package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/probe"
)

// answerTimeout is how long to wait for the last answer of a peer.
const answerTimeout = time.Second

// peerProbe is what the probes of a peer found, in one family.
type peerProbe struct {
	Host     string          `json:"host"`
	Subnet   string          `json:"subnet"`
	Path     string          `json:"path"`
	Probed   string          `json:"probed"` // the address; empty: none was
	Sent     int             `json:"sent"`
	Received int             `json:"received"`
	Lost     float64         `json:"lost"` // 0 to 1
	MinMS    float64         `json:"minMs"`
	AvgMS    float64         `json:"avgMs"`
	MaxMS    float64         `json:"maxMs"`
	Fast     api.FastPackets `json:"fast"` // packets between containers here and there that took the fast path
	Error    string          `json:"error,omitempty"`
}

func (a *app) peersCommand() *cobra.Command {
	var watch bool
	cfg := probe.Config{Timeout: answerTimeout}
	cmd := group(&cobra.Command{
		Use:   "peers",
		Short: "Probe the other hosts: latency and loss; exit 1 if one does not answer",
		Long: `Probe the other hosts by ICMP echo: latency and loss; exit 1 if one does not answer. It needs root.

A host that is reached by vxlan is asked at the first address of its subnet, which its vxlan link has: the echoes take
the way of containers' packets. With host-gw there is no such address, and the host itself is asked; its route is then
not tested. The kernel of the other host answers, flannel's hosts too; one whose firewall drops echoes looks lost.

Those that answer are asked again from a network namespace that is attached as a container is, for as long as that takes:
where a firewall here, or a link that does not forward, cuts off containers alone, the error says which it is.

FAST counts the packets of containers that took the fast path, to the peer and from it: see overlayctl fast-path.

The commands below are for peers outside the network, machines without overlayd that wireguard lets in. They are not probed.`,
	}, a.peersAddCommand(), a.peersListCommand(), a.peersConfigCommand(), a.peersRemoveCommand())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cfg.Count < 1 || cfg.Count > 1000 {
			return usageError{fmt.Errorf("--count: %d is not in 1-1000", cfg.Count)}
		}
		if cfg.Interval < 10*time.Millisecond {
			return usageError{fmt.Errorf("--interval: %s is less than 10ms", cfg.Interval)}
		}
		return a.again(cmd.Context(), watch, func(ctx context.Context) error { return a.showPeers(ctx, cfg) })
	}
	cmd.Flags().IntVar(&cfg.Count, "count", 5, "`number` of echoes to each peer")
	cmd.Flags().DurationVar(&cfg.Interval, "interval", 200*time.Millisecond, "how far apart they are")
	watchFlag(cmd, &watch)
	return cmd
}

func (a *app) showPeers(ctx context.Context, cfg probe.Config) error {
	s, err := a.askDaemon(ctx)
	if err != nil {
		return err
	}
	probes, targets := planProbes(s.Peers)
	if took := time.Duration(cfg.Count) * cfg.Interval; len(targets) > 0 && took >= time.Second {
		defer a.progress("probing %s", plural(len(s.Peers), "peer"))()
	}
	results, err := probe.Ping(ctx, targets, cfg)
	if err != nil {
		return explainProbe(err)
	}
	attention := fillIn(probes, results)
	cut, err := a.contain(ctx, s, probes)
	if err != nil {
		return err
	}
	return a.show(probes, attention || cut, func(w io.Writer) { a.printPeers(w, probes) })
}

// contain tries the same as a container of this host, and tells whether one does not reach what the host reaches. That it
// cannot try is no reason to say nothing.
func (a *app) contain(ctx context.Context, s api.Status, probes []peerProbe) (cut bool, err error) {
	var ways []probe.Way
	for _, p := range s.Peers {
		ways = append(ways, probe.Ways(p)...)
	}
	if !slices.ContainsFunc(probes, func(p peerProbe) bool { return p.Received > 0 }) {
		return false, nil
	}
	found, err := probe.Contain(ctx, s.Subnets, ways)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil {
		fmt.Fprintf(a.stderr, "overlayctl: whether containers reach them too is not known: %v\n", err)
	}
	for i := range probes {
		for subnet, loss := range found.Lost {
			if probes[i].Subnet == subnet.String() {
				probes[i].Error, cut = "containers here do not reach it: "+loss.Text, true
			}
		}
	}
	return cut, nil
}

// explainProbe says what to do about the one error that is to be expected.
func explainProbe(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: probes need root (CAP_NET_RAW)", err)
	}
	return err
}

// planProbes says where to ask for each peer's subnets. Probes without an address have no target.
func planProbes(peers []api.Peer) ([]peerProbe, []probe.Target) {
	probes := []peerProbe{}
	var targets []probe.Target
	for _, p := range peers {
		if probe.Reserved(p) || p.Outside {
			continue
		}
		fast := map[string]api.FastPackets{}
		for i, n := range p.Fast {
			fast[p.Subnets[i]] = n
		}
		for _, way := range probe.Ways(p) {
			found := peerProbe{Host: p.Host, Subnet: way.Subnet.String(), Path: p.Path, Fast: fast[way.Subnet.String()], Error: p.Error}
			if way.Overlay.IsValid() {
				found.Probed = way.Overlay.String()
				targets = append(targets, probe.Target{Addr: way.Overlay})
			}
			probes = append(probes, found)
		}
	}
	return probes, targets
}

// fillIn brings the results, which come in the order of the targets, to their probes, and tells whether a peer does
// not answer.
func fillIn(probes []peerProbe, results []probe.Result) (attention bool) {
	for i := range probes {
		p := &probes[i]
		if p.Probed == "" {
			p.Lost, attention = 1, true
			continue
		}
		r := results[0]
		results = results[1:]
		p.Sent, p.Received, p.Lost = r.Sent, r.Received, r.Lost()
		p.MinMS, p.AvgMS, p.MaxMS = milliseconds(r.Min), milliseconds(r.Avg), milliseconds(r.Max)
		if r.Err != nil {
			p.Error = r.Err.Error()
		}
		attention = attention || r.Received == 0
	}
	return attention
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (a *app) printPeers(w io.Writer, probes []peerProbe) {
	header := []string{"PEER", "SUBNET", "PATH", "LOSS", "RTT", "FAST", "ERROR"}
	if a.output == "wide" {
		header = append(header, "PROBED", "MIN", "MAX")
	}
	row(w, header...)
	for _, p := range probes {
		cells := []string{p.Host, p.Subnet, cmp.Or(p.Path, "not reached"), fmt.Sprintf("%.0f%%", 100*p.Lost), roundTrip(p, p.AvgMS), fastPackets(p.Fast), p.Error}
		if a.output == "wide" {
			cells = append(cells, p.Probed, roundTrip(p, p.MinMS), roundTrip(p, p.MaxMS))
		}
		row(w, cells...)
	}
}

// fastPackets is how many went the fast path to the peer, and came from there.
func fastPackets(n api.FastPackets) string {
	if n == (api.FastPackets{}) {
		return ""
	}
	return fmt.Sprintf("%d/%d", n.Sent, n.Received)
}

func roundTrip(p peerProbe, ms float64) string {
	if p.Received == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fms", ms)
}
