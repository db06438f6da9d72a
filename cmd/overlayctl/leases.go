package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/cmd/internal/probe"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// maxAsked is how many requests for an expiry are under way at once.
const maxAsked = 32

// lease is a lease as it is printed.
type lease struct {
	Host      string   `json:"host"`
	HostID    string   `json:"hostID"`
	Subnets   []string `json:"subnets"`
	PublicIPs []string `json:"publicIPs"`
	Backend   string   `json:"backend"`
	Reserved  bool     `json:"reserved"`

	record subnet.Record
}

// expiringLease is a lease and when it ends.
type expiringLease struct {
	lease
	Expires *time.Time `json:"expires"` // null: never
}

func newLease(r subnet.Record) lease {
	l := lease{
		Host: r.Host, HostID: r.HostID, Backend: r.Backend, Reserved: r.LeaseID == 0,
		Subnets: []string{}, PublicIPs: []string{}, record: r,
	}
	for _, e := range r.Endpoints {
		l.Subnets = append(l.Subnets, e.Subnet.String())
		if e.PublicIP.IsValid() {
			l.PublicIPs = append(l.PublicIPs, e.PublicIP.String())
		}
	}
	return l
}

func (a *app) leasesCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "leases",
		Short: "Show the leases, each a host's claim of a subnet",
	}, a.leasesListCommand(), a.leasesGetCommand(), a.leasesWatchCommand(),
		a.leasesReserveCommand(), a.leasesReleaseCommand())
}

func (a *app) leasesListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all leases",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := a.listLeases(cmd.Context())
			if err != nil {
				return err
			}
			leases, err := a.expiries(cmd.Context(), records)
			if err != nil {
				return err
			}
			return a.printLeases(cmd.Context(), leases, leases)
		},
	}
}

func (a *app) leasesGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get (SUBNET | HOST | HOST-ID | IP)",
		Short: "Show one lease, by its subnet, its host, or an address of either",
		Example: `  overlayctl leases get 10.244.7.0/24
  overlayctl leases get 10.244.7.19       # the address of a container
  overlayctl leases get db-1.example.org`,
		Args:              arguments("SUBNET, HOST, HOST-ID or IP"),
		ValidArgsFunction: a.completeLease,
		RunE: func(cmd *cobra.Command, args []string) error {
			record, err := a.findLease(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			leases, err := a.expiries(cmd.Context(), []subnet.Record{record})
			if err != nil {
				return err
			}
			return a.printLeases(cmd.Context(), leases[0], leases)
		},
	}
}

// completeLease offers the subnets and hosts that etcd knows as the first argument.
func (a *app) completeLease(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	listing, err := a.listing(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, r := range listing.Records {
		for _, p := range r.Subnets() {
			names = append(names, p.String())
		}
		if r.Host != "" {
			names = append(names, r.Host)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

// listLeases returns the leases by subnet, and warns of the keys that are none.
func (a *app) listLeases(ctx context.Context) ([]subnet.Record, error) {
	listing, err := a.listing(ctx)
	a.warn(skippedKeys(listing))
	return listing.Records, err
}

// skippedKeys says what keys are no leases, and why.
func skippedKeys(l etcdstore.Listing) []string {
	lines := make([]string, len(l.Skipped))
	for i, k := range l.Skipped {
		lines[i] = fmt.Sprintf("skipped %s: %v", k.Key, k.Err)
	}
	return lines
}

// expiries asks for the time at which each lease ends.
func (a *app) expiries(ctx context.Context, records []subnet.Record) ([]expiringLease, error) {
	leases := make([]expiringLease, len(records))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAsked)
	for i, r := range records {
		leases[i].lease = newLease(r)
		if r.LeaseID == 0 {
			continue
		}
		g.Go(func() error {
			return a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) error {
				at, err := s.Expiry(ctx, r.LeaseID)
				if err == nil {
					at = at.UTC().Truncate(time.Second)
					leases[i].Expires = &at
				}
				return err
			})
		})
	}
	return leases, g.Wait()
}

// findLease returns the one lease in etcd that name means.
func (a *app) findLease(ctx context.Context, name string) (subnet.Record, error) {
	records, err := a.listLeases(ctx)
	if err != nil {
		return subnet.Record{}, err
	}
	return find(records, name)
}

// find returns the one record that name means.
func find(records []subnet.Record, name string) (subnet.Record, error) {
	var found []subnet.Record
	for _, r := range records {
		if means(r.Lease, name) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return subnet.Record{}, fmt.Errorf("no lease of %q (see: overlayctl leases list)", name)
	case 1:
		return found[0], nil
	}
	var subnets []string
	for _, r := range found {
		subnets = append(subnets, subnet.Join(r.Subnets()))
	}
	return subnet.Record{}, fmt.Errorf("%q has %s: %s; name one by its subnet",
		name, plural(len(found), "lease"), strings.Join(bound(subnets), ", "))
}

// means tells whether a person means l by name: its host, its host's id or address, or its subnet or an address in it.
func means(l subnet.Lease, name string) bool {
	if name == l.Host || name == l.HostID {
		return name != ""
	}
	addr, addrErr := netip.ParseAddr(name)
	addr = addr.Unmap()
	prefix, prefixErr := netip.ParsePrefix(name)
	for _, e := range l.Endpoints {
		if addrErr == nil && (e.PublicIP == addr || e.Subnet.Contains(addr)) || prefixErr == nil && e.Subnet == prefix.Masked() {
			return true
		}
	}
	return false
}

// printLeases prints v or, for people, a table of leases.
func (a *app) printLeases(ctx context.Context, v any, leases []expiringLease) error {
	var ways map[string]string
	last := []string{"EXPIRES"}
	if a.output == "wide" {
		ways = a.ways(ctx)
		last = append(last, "PATH")
	}
	return a.print(v, func(w io.Writer) {
		row(w, a.leaseHeader(last...)...)
		for _, l := range leases {
			cells := []string{expiry(l.Expires, a.now())}
			if a.output == "wide" {
				cells = append(cells, ways[strings.Join(l.Subnets, ",")])
			}
			row(w, a.leaseCells(l.lease, cells...)...)
		}
	})
}

// ways tells by the subnets of a lease how this host reaches it. Where no daemon runs, nobody knows.
func (a *app) ways(ctx context.Context) map[string]string {
	s, err := a.askDaemon(ctx)
	if err != nil {
		return nil
	}
	ways := map[string]string{strings.Join(s.Subnets, ","): "this host"}
	for _, p := range s.Peers {
		way := p.Path
		if way == "" && !probe.Reserved(p) {
			way = "not reached"
		}
		ways[strings.Join(p.Subnets, ",")] = way
	}
	return ways
}

// leaseHeader names what leaseCells returns.
func (a *app) leaseHeader(last ...string) []string {
	header := append([]string{"HOST", "SUBNETS", "PUBLIC-IP", "BACKEND"}, last...)
	if a.output == "wide" {
		header = append(header, "HOST-ID", "VTEP-MAC", "REVISION")
	}
	return header
}

func (a *app) leaseCells(l lease, last ...string) []string {
	cells := append([]string{l.Host, strings.Join(l.Subnets, ","), strings.Join(l.PublicIPs, ","), l.Backend}, last...)
	if a.output == "wide" {
		cells = append(cells, l.HostID, vtepMAC(l.record.Lease), strconv.FormatInt(l.record.ModRevision, 10))
	}
	return cells
}

// vtepMAC is the MAC of the host's vxlan link, as its lease has it; empty if it has none.
func vtepMAC(l subnet.Lease) string {
	for _, e := range l.Endpoints {
		var data struct{ VtepMAC string }
		if json.Unmarshal(e.Data, &data) == nil && data.VtepMAC != "" {
			return data.VtepMAC
		}
	}
	return ""
}
