package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/enrol"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// host is a host that has joined, as it is printed.
type host struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Addresses []string  `json:"addresses"`
	Joined    time.Time `json:"joined"`
	Member    bool      `json:"member"` // it runs etcd
	Subnets   []string  `json:"subnets"`
}

func (a *app) hostsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "hosts",
		Short: "List the hosts that have joined, and remove one",
	}, a.hostsListCommand(), a.hostsRemoveCommand())
}

// joined asks for the hosts that have joined.
func (a *app) joined(ctx context.Context) (hosts []enrol.HostRecord, err error) {
	err = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		hosts, err = enrol.Hosts(ctx, s)
		return err
	})
	return hosts, err
}

func (a *app) hostsListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the hosts that have joined",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := a.joined(cmd.Context())
			if err != nil {
				return err
			}
			leases, err := a.listing(cmd.Context())
			if err != nil {
				return err
			}
			list := []host{}
			for _, r := range records {
				h := host{Name: r.Name, ID: r.ID, Addresses: []string{}, Joined: r.Joined, Member: r.Member, Subnets: []string{}}
				for _, ip := range r.Addresses {
					h.Addresses = append(h.Addresses, ip.String())
				}
				for _, l := range leases.Records {
					if l.HostID == r.ID {
						h.Subnets = append(h.Subnets, subnet.Join(l.Subnets()))
					}
				}
				list = append(list, h)
			}
			slices.SortFunc(list, func(a, b host) int { return strings.Compare(a.Name, b.Name) })
			return a.print(list, func(w io.Writer) {
				row(w, "NAME", "SUBNET", "ADDRESS", "JOINED", "ETCD", "ID")
				for _, h := range list {
					etcd := ""
					if h.Member {
						etcd = "member"
					}
					row(w, h.Name, strings.Join(h.Subnets, " "), strings.Join(h.Addresses, ","), h.Joined.Format(time.DateOnly), etcd, h.ID)
				}
			})
		},
	}
}

func (a *app) hostsRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove HOST",
		Short: "End a host's part in the network at once, by its name or id",
		Long: `End a host's part in the network, and in all others below the prefix, at once, by its name or id: etcd refuses it, its
certificate is not renewed, and its leases are deleted, so that the others stop sending to it. What runs on it goes on, and
it joins again with a token. Reservations stay.`,
		Args: arguments("HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			records, err := a.joined(cmd.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(records, func(r enrol.HostRecord) bool { return r.ID == args[0] })
			if i < 0 { // a name may be that of another's id
				i = slices.IndexFunc(records, func(r enrol.HostRecord) bool { return r.Name == args[0] })
			}
			if i < 0 {
				return fmt.Errorf("no host has joined as %q: see overlayctl hosts list", args[0])
			}
			if err := a.runsEtcd(cmd.Context(), records[i]); err != nil {
				return err
			}
			return a.removeHost(cmd.Context(), records[i])
		},
	}
	ofAll(cmd)
	return cmd
}

// runsEtcd is an error if a host is a member of etcd now.
func (a *app) runsEtcd(ctx context.Context, h enrol.HostRecord) error {
	if !h.Member {
		return nil
	}
	var members []etcdstore.EtcdMember
	err := a.askMembers(ctx, func(ctx context.Context, c *etcdstore.Client) (err error) {
		members, err = c.EtcdMembers(ctx)
		return err
	})
	for _, m := range members {
		if slices.ContainsFunc(h.Addresses, func(ip netip.Addr) bool { return m.Is(ip.String()) }) {
			return fmt.Errorf("%s runs etcd for the network: overlayctl members remove %x first", h.Name, m.ID)
		}
	}
	return err
}

// removeHost takes a host its right first: it would claim another lease.
func (a *app) removeHost(ctx context.Context, h enrol.HostRecord) error {
	err := a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) error { return enrol.RemoveHost(ctx, s, h.ID) })
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "removed %s (%s): etcd refuses it from now on\n", printable(h.Name), printable(h.ID))
	if err := a.releaseAll(ctx, h.ID); err != nil {
		return err
	}
	return a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) error {
		tokens, err := enrol.Tokens(ctx, s)
		for _, t := range tokens {
			if t.ID == h.Token && t.State(a.now()) == "" {
				a.warn([]string{fmt.Sprintf("it knows the token %s, and can join again by it: overlayctl tokens revoke %[1]s", t.ID)})
			}
		}
		return err
	})
}

// releaseAll releases what a host holds in all networks. In one that nobody can read it holds nothing that counts.
func (a *app) releaseAll(ctx context.Context, hostID string) error {
	held, err := a.networks(ctx)
	if err != nil {
		return fmt.Errorf("its leases stay until they end: %w", err)
	}
	for _, n := range held.All {
		if _, err := subnet.ParseNetwork(n.Config); err != nil {
			continue
		}
		of := *a
		of.overlay = n.Name
		listing, err := of.listing(ctx)
		if err != nil {
			return fmt.Errorf("its lease in network %s stays until it ends: %w", networkName(n.Name), err)
		}
		for _, l := range listing.Records {
			if l.HostID != hostID || l.LeaseID == 0 {
				continue
			}
			if err := of.ask(ctx, func(ctx context.Context, s *etcdstore.Store) error { return s.Release(ctx, l) }); err != nil {
				return fmt.Errorf("its lease %s stays until it ends: %w", l.Key(), err)
			}
			fmt.Fprintf(a.stdout, "released %s\n", l.Key())
		}
	}
	return nil
}
