package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// reservation is what a person says of a lease to reserve.
type reservation struct {
	hostID, host string
	publicIPs    []string
}

func (a *app) leasesReserveCommand() *cobra.Command {
	var r reservation
	cmd := &cobra.Command{
		Use:   "reserve SUBNET[,SUBNET] (--host ID | --public-ip IP[,IP])",
		Short: "Reserve a subnet for a host, so that its lease does not expire",
		Long: `Reserve a subnet for a host, so that its lease does not expire. The host is named by the id that leases list
-o wide and overlayctl status show, or by the address at which other hosts reach it. In a network of two families,
give a subnet of each. Reserving the subnet that the host has already keeps it for good; to another one the host
moves when no container on it has an address of the one that it has.`,
		Example: `  overlayctl leases reserve 10.244.7.0/24 --public-ip 192.0.2.7
  overlayctl leases reserve 10.244.7.0/24,fd00:244:0:7::/64 --host 5f0c9a`,
		Args: arguments("SUBNET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.hostID == "" && len(r.publicIPs) == 0 {
				return usageError{errors.New("name the host: --host or --public-ip")}
			}
			l, err := r.lease(args[0])
			if err != nil {
				return usageError{err}
			}
			err = a.ask(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) error { return s.Reserve(ctx, l) })
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "reserved: %s\n", nameLease(l))
			records, err := a.listLeases(cmd.Context())
			for _, o := range records {
				if o.HostID != "" && o.HostID == l.HostID && o.Key() != l.Key() {
					fmt.Fprintf(a.stdout, "the host has %s: it moves, and gives that back, when no container on it has an address of that\n", nameLease(o.Lease))
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&r.hostID, "host", "", "`id` of the host")
	cmd.Flags().StringVar(&r.host, "name", "", "`name` of the host, for people")
	cmd.Flags().StringSliceVar(&r.publicIPs, "public-ip", nil, "`address` at which other hosts reach the host; one of each family")
	return cmd
}

// lease is the lease that reserves the comma-separated subnets.
func (r reservation) lease(subnets string) (subnet.Lease, error) {
	l := subnet.Lease{HostID: r.hostID, Host: r.host}
	for text := range strings.SplitSeq(subnets, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return l, fmt.Errorf("%q is not a subnet like 10.244.7.0/24", text)
		}
		if p != p.Masked() {
			return l, fmt.Errorf("%s has host bits set: the subnet is %s", p, p.Masked())
		}
		if _, twice := l.Endpoint(subnet.FamilyOf(p.Addr())); twice {
			return l, fmt.Errorf("%q has two subnets of one family", subnets)
		}
		l.Endpoints = append(l.Endpoints, subnet.Endpoint{Subnet: p})
	}
	slices.SortFunc(l.Endpoints, func(a, b subnet.Endpoint) int { return a.Subnet.Addr().Compare(b.Subnet.Addr()) })
	for _, text := range r.publicIPs {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return l, fmt.Errorf("--public-ip: %w", err)
		}
		i := slices.IndexFunc(l.Endpoints, func(e subnet.Endpoint) bool {
			return subnet.FamilyOf(e.Subnet.Addr()) == subnet.FamilyOf(addr) && !e.PublicIP.IsValid()
		})
		if i < 0 {
			return l, fmt.Errorf("--public-ip: %s belongs to no subnet of its family, or to one that has another", addr)
		}
		l.Endpoints[i].PublicIP = addr
	}
	return l, nil
}

func (a *app) leasesReleaseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release (SUBNET | HOST | HOST-ID | IP)",
		Short: "Delete a lease or a reservation",
		Long: `Delete a lease or a reservation, of a host that is gone for good for example: its subnet is free at once.
A host whose overlayd runs claims its subnet again.`,
		Args:              arguments("SUBNET, HOST, HOST-ID or IP"),
		ValidArgsFunction: a.completeLease,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.findLease(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			err = a.ask(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) error { return s.Release(ctx, r) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "released: %s\n", nameLease(r.Lease))
			return err
		},
	}
}
