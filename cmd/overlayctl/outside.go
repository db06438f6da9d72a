package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// addTries is how often a subnet is looked for while others claim the one that was found.
const addTries = 5

// outsidePeer is a peer outside the network as it is printed.
type outsidePeer struct {
	Name      string     `json:"name"`
	Subnets   []string   `json:"subnets"`
	PublicKey string     `json:"publicKey"`
	Endpoint  string     `json:"endpoint"`  // where this host sends to; empty: nowhere before the peer calls, or no daemon is here to ask
	Handshake *time.Time `json:"handshake"` // with this host; null: never
	Config    string     `json:"config,omitempty"`
}

func newOutsidePeer(l subnet.Lease) outsidePeer {
	p := outsidePeer{Name: l.Host, Subnets: []string{}, PublicKey: wireGuardKey(l)}
	for _, s := range l.Subnets() {
		p.Subnets = append(p.Subnets, s.String())
	}
	return p
}

func (a *app) peersAddCommand() *cobra.Command {
	var publicKey string
	var endpoints []string
	var ipv6 bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Let a machine without overlayd into a wireguard network, and print its configuration for wg-quick",
		Long: `Let a machine without overlayd, a laptop or a file server say, into a network of wireguard: all hosts, flannel's too, know it
as a peer with a subnet of its own. What is printed is its configuration, as wg-quick takes it. The private key in it is made here
and kept nowhere: it is shown this once. With --public-key the machine keeps its private key to itself.

The machine calls the hosts. Where it has an address that hosts reach, --endpoint lets them call first. Hosts that join the network
later are in what "overlayctl peers config" prints then.

Where an IPv4 and an IPv6 network have a link each (Mode "separate", the default), the machine needs two as well: --ipv6 prints the
second.`,
		Example: `  overlayctl peers add laptop > overlay.conf
  overlayctl peers add nfs-1 --endpoint 198.51.100.7:51820 --public-key 9Gt0CcTIcLBdl2cLLRw1ZDmG0ACdTGdpdX2WLsBwgVg=`,
		Args: arguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !plainName.MatchString(args[0]) {
				return usageError{fmt.Errorf("%q is no name: letters, digits, dots, _ and - make one", args[0])}
			}
			p := admission{name: args[0]}
			if publicKey == "" {
				p.private = kernel.NewSecret()
				publicKey = p.private.Public().String()
			}
			key, err := kernel.ParseWGKey(publicKey)
			if err != nil {
				return usageError{fmt.Errorf("--public-key: %w", err)}
			}
			p.key = key
			for _, text := range endpoints {
				at, err := netip.ParseAddrPort(text)
				if err != nil || at.Port() == 0 || !at.Addr().IsGlobalUnicast() || at.Addr().Is4In6() {
					return usageError{fmt.Errorf("--endpoint: %q is no address and port like 198.51.100.7:51820", text)}
				}
				p.endpoints = append(p.endpoints, at)
			}
			return a.addPeer(cmd.Context(), p, ipv6)
		},
	}
	cmd.Flags().StringVar(&publicKey, "public-key", "", "public `key` of the machine (wg pubkey)")
	cmd.Flags().StringSliceVar(&endpoints, "endpoint", nil, "`address:port` at which hosts reach the machine; one of each family")
	ipv6Flag(cmd, &ipv6)
	return cmd
}

func ipv6Flag(cmd *cobra.Command, ipv6 *bool) {
	cmd.Flags().BoolVar(ipv6, "ipv6", false, "print the configuration of the link of IPv6, where that is another")
}

// admission is what a machine is let in with.
type admission struct {
	name      string
	key       kernel.WGKey
	private   kernel.Secret // zero: not known
	endpoints []netip.AddrPort
}

func (a *app) addPeer(ctx context.Context, p admission, ipv6 bool) error {
	n, err := a.wireGuardNetwork(ctx)
	if err != nil {
		return err
	}
	var l subnet.Lease
	err = a.ask(ctx, func(ctx context.Context, s *etcdstore.Store) (err error) {
		for range addTries {
			if l, err = p.reserve(ctx, s, n); !errors.Is(err, etcdstore.ErrTaken) {
				break
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.printPeerConfig(ctx, n, l, p.private, ipv6)
}

// reserve claims a subnet for the machine, as a host of its name would. ErrTaken says that another host was faster.
func (p admission) reserve(ctx context.Context, s *etcdstore.Store, n wgNetwork) (subnet.Lease, error) {
	// Without addresses: no lease is taken for the machine's own because it has that of a host.
	subnets, leases, err := s.Choose(ctx, etcdstore.JoinConfig{HostID: "peer " + p.name}, subnet.Lease{})
	if err != nil {
		return subnet.Lease{}, err
	}
	for _, r := range leases.Records {
		if r.Outside() && r.Host == p.name {
			return subnet.Lease{}, fmt.Errorf("there is a peer %s: %s (another name, or: overlayctl peers remove %[1]s)", p.name, nameLease(r.Lease))
		}
		if wireGuardKey(r.Lease) == p.key.String() {
			return subnet.Lease{}, fmt.Errorf("the public key is that of %s: each machine needs its own", r.Who())
		}
	}
	l, err := p.lease(subnets, n)
	if err != nil {
		return l, err
	}
	return l, s.Reserve(ctx, l)
}

func (p admission) lease(subnets []netip.Prefix, n wgNetwork) (subnet.Lease, error) {
	l := subnet.Lease{Host: p.name, Backend: backend.WireGuard}
	at := map[subnet.Family]netip.AddrPort{}
	for _, e := range p.endpoints {
		f := subnet.FamilyOf(e.Addr())
		if _, twice := at[f]; twice {
			return l, fmt.Errorf("--endpoint: two of %s", f)
		}
		at[f] = e
	}
	for _, s := range subnets {
		f := subnet.FamilyOf(s.Addr())
		if ip := at[f].Addr(); ip.IsValid() && n.Contains(netip.PrefixFrom(ip, ip.BitLen())) {
			return l, fmt.Errorf("--endpoint: %s is in the network: hosts would look for it by the link that it is to be reached by", at[f])
		}
		if port := at[f].Port(); at[f].IsValid() && port < 1024 && port != n.options.Port(f) {
			return l, fmt.Errorf("--endpoint: port %d is one of the system's, and not the network's (%d): hosts refuse it", port, n.options.Port(f))
		}
		e := subnet.Endpoint{Subnet: s, PublicIP: at[f].Addr()}
		data := backend.WireGuardData{PublicKey: p.key.String(), Port: n.options.Port(f)}
		if e.PublicIP.IsValid() {
			data.Port = at[f].Port()
		}
		delete(at, f)
		e.Data, _ = json.Marshal(data) // a string and a number
		l.Endpoints = append(l.Endpoints, e)
	}
	for f, e := range at {
		return l, fmt.Errorf("--endpoint: %s: the network has no %s", e, f)
	}
	return l, nil
}

func (a *app) peersConfigCommand() *cobra.Command {
	var ipv6 bool
	cmd := &cobra.Command{
		Use:   "config NAME",
		Short: "Print the configuration of a peer outside the network anew, without its private key",
		Long: `Print the configuration of a peer outside the network as it is with the hosts of today, for wg-quick. The private key is not
known to anybody but the peer: put it in.`,
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeOutside,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.wireGuardNetwork(cmd.Context())
			if err != nil {
				return err
			}
			r, err := a.findOutside(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printPeerConfig(cmd.Context(), n, r.Lease, kernel.Secret{}, ipv6)
		},
	}
	ipv6Flag(cmd, &ipv6)
	return cmd
}

func (a *app) peersRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Short:             "Take a peer outside the network out of it: all hosts forget its key at once",
		Args:              arguments("NAME"),
		ValidArgsFunction: a.completeOutside,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.findOutside(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			err = a.ask(cmd.Context(), func(ctx context.Context, s *etcdstore.Store) error { return s.Release(ctx, r) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "removed: %s\n", nameLease(r.Lease))
			return err
		},
	}
}

func (a *app) peersListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the peers outside the network, and when each last shook hands with this host",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := a.listLeases(cmd.Context())
			if err != nil {
				return err
			}
			peers := []outsidePeer{} // never null
			status, statusErr := a.askDaemon(cmd.Context())
			for _, r := range records {
				if !r.Outside() {
					continue
				}
				p := newOutsidePeer(r.Lease)
				if statusErr == nil && status.WireGuard != nil {
					for _, s := range status.WireGuard.Peers {
						if s.PublicKey == p.PublicKey && (p.Handshake == nil || s.Handshake != nil && s.Handshake.After(*p.Handshake)) {
							p.Endpoint, p.Handshake = s.Endpoint, s.Handshake
						}
					}
				}
				peers = append(peers, p)
			}
			return a.print(peers, func(w io.Writer) {
				row(w, "NAME", "SUBNETS", "PUBLIC-KEY", "ENDPOINT", "HANDSHAKE")
				for _, p := range peers {
					row(w, p.Name, strings.Join(p.Subnets, ","), p.PublicKey, p.Endpoint, a.ago(p.Handshake))
				}
			})
		},
	}
}

// findOutside is the lease of the peer outside the network that has a name.
func (a *app) findOutside(ctx context.Context, name string) (subnet.Record, error) {
	records, err := a.listLeases(ctx)
	if err != nil {
		return subnet.Record{}, err
	}
	i := slices.IndexFunc(records, func(r subnet.Record) bool { return r.Outside() && r.Host == name })
	if i < 0 {
		return subnet.Record{}, fmt.Errorf("there is no peer %q outside the network (see: overlayctl peers list)", name)
	}
	return records[i], nil
}

// completeOutside offers the names of peers outside the network.
func (a *app) completeOutside(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	listing, err := a.listing(cmd.Context())
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, r := range listing.Records {
		if r.Outside() {
			names = append(names, r.Host)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
