package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// networkTries is how often a network is made anew because somebody else made one in the same moment.
const networkTries = 200

// networkName is how people call a network.
func networkName(name string) string { return cmp.Or(name, subnet.DefaultNetwork) }

// noNetwork says that there is no network of a name.
func noNetwork(name string) error {
	return fmt.Errorf("there is no network %s: see overlayctl network list", networkName(name))
}

// clashes is the error that no host could be in the network of a name, if that were n, and in one of the others.
func clashes(held etcdstore.Networks, name string, n subnet.Network) error {
	for _, other := range held.All {
		o, err := subnet.ParseNetwork(other.Config)
		if err != nil || other.Name == name {
			continue
		}
		if err := backend.Clash(n, o); err != nil {
			return fmt.Errorf("no host could be in network %s and in %s: %w", networkName(name), networkName(other.Name), err)
		}
	}
	return nil
}

func (a *app) networkCreateCommand() *cobra.Command {
	var file, kind string
	cmd := &cobra.Command{
		Use:   "create NAME (CIDR | JSON | - | -f FILE)",
		Short: "Make a network of a name, beside the others",
		Long: `Make a network of a name, beside the others. Hosts join it whose setting "networks" names it, or is "all". Where the
configuration says nothing of its VNI or its UDP ports, the lowest are taken that no other network has. Ranges, VNIs and ports
that another network has are refused, for no host could be in both.`,
		Example: `  overlayctl network create blue 10.20.0.0/16
  overlayctl network create red 10.30.0.0/16,fd00:30::/48 --backend wireguard
  overlayctl -N blue leases list`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := subnet.ValidNetworkName(args[0]); err != nil {
				return err
			}
			c, err := a.readCandidate(args[1:], file)
			if err != nil {
				return err
			}
			if kind != "" {
				if c, err = withBackend(c, kind); err != nil {
					return err
				}
			}
			return a.createNetwork(cmd.Context(), args[0], c)
		},
	}
	networkArgs(cmd, &file)
	rest := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return arguments("NAME")(cmd, args)
		}
		return rest(cmd, args[1:])
	}
	cmd.Flags().StringVar(&kind, "backend", "", "`type` of the backend, if the configuration is a range: "+strings.Join(backend.Kinds(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("backend", cobra.FixedCompletions(backend.Kinds(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// withBackend is a configuration with a backend of another kind, and no options.
func withBackend(c candidate, kind string) (candidate, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(c.raw, &all); err != nil {
		return candidate{}, err
	}
	if have := string(all["Backend"]); have != `{"Type":"vxlan"}` { // which is what a range becomes
		return candidate{}, usageError{fmt.Errorf("--backend %s: the configuration names one: %s", kind, subnet.Redact(c.raw))}
	}
	all["Backend"], _ = json.Marshal(map[string]string{"Type": kind})
	text, err := json.Marshal(all)
	if err != nil {
		return candidate{}, err
	}
	return parseCandidate(string(text))
}

// createNetwork makes a network, with numbers that are free at the moment when it is made.
func (a *app) createNetwork(ctx context.Context, name string, proposed candidate) error {
	for try := 1; ; try++ {
		held, err := a.networks(ctx)
		if err != nil {
			return err
		}
		if held.Find(name).ModRevision != 0 {
			return fmt.Errorf("there is a network %s already: change it by overlayctl -N %[1]s network set", name)
		}
		c, err := distinct(held, name, proposed)
		if err != nil {
			return err
		}
		if err := clashes(held, name, c.network); err != nil {
			return err
		}
		if err := a.checkGround(c.network, current{}); err != nil {
			return err
		}
		err = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) error { return s.PutNetwork(ctx, held, name, c.raw) })
		if errors.Is(err, etcdstore.ErrConflict) && try < networkTries {
			continue
		}
		if err != nil {
			return err
		}
		if err := a.report("created "+name, c); err != nil || !a.output.forPeople() {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, "  hosts join it by \"networks: [%s]\" or \"networks: all\" in overlayd.yaml\n", name)
		return err
	}
}

// distinct is a configuration for the network of a name, with numbers that no other network of held has.
func distinct(held etcdstore.Networks, name string, c candidate) (candidate, error) {
	var before subnet.Network
	var others []subnet.Network
	for _, n := range held.All {
		o, err := subnet.ParseNetwork(n.Config)
		switch {
		case err != nil:
		case n.Name == name:
			before = o
		default:
			others = append(others, o)
		}
	}
	raw, err := backend.Distinct(c.raw, before, others)
	if err != nil {
		return candidate{}, err
	}
	return parseCandidate(string(raw))
}

// listedNetwork is a network as it is printed.
type listedNetwork struct {
	Name     string          `json:"name"`
	Ranges   []string        `json:"ranges"`
	Backend  string          `json:"backend"`
	Config   json.RawMessage `json:"config"` // without the key that its hosts share; null: what stands there is no JSON
	Leases   int64           `json:"leases"`
	Peers    []string        `json:"peers"`
	Followed bool            `json:"followed"` // hosts that join all networks know of it
	Error    string          `json:"error,omitempty"`
}

func (a *app) networkListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the networks below the prefix; the one that has no name is called default",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.listNetworks(cmd.Context())
			if err != nil {
				return err
			}
			err = a.print(list, func(w io.Writer) {
				row(w, "NAME", "RANGE", "BACKEND", "LEASES", "PEERED-WITH", "ERROR")
				for _, n := range list {
					row(w, n.Name, strings.Join(n.Ranges, ","), n.Backend, fmt.Sprint(n.Leases), strings.Join(n.Peers, ","), n.Error)
				}
			})
			for _, n := range list {
				if !n.Followed && n.Error == "" {
					a.warn([]string{fmt.Sprintf("%s was made by hand, and hosts with \"networks: all\" do not know of it: write it again by overlayctl -N %[1]s network set", n.Name)})
				}
			}
			return err
		},
	}
}

func (a *app) listNetworks(ctx context.Context) ([]listedNetwork, error) {
	held, err := a.networks(ctx)
	if err != nil {
		return nil, err
	}
	peerings, err := a.peerings(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]listedNetwork, len(held.All))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAsked)
	for i, n := range held.All {
		l := &list[i]
		*l = listedNetwork{Name: networkName(n.Name), Ranges: []string{}, Peers: []string{}, Followed: n.Followed}
		for _, p := range peerings {
			if p.A == n.Name {
				l.Peers = append(l.Peers, networkName(p.B))
			} else if p.B == n.Name {
				l.Peers = append(l.Peers, networkName(p.A))
			}
		}
		slices.Sort(l.Peers)
		l.describe(n.Config)
		g.Go(func() error {
			return a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) error {
				of, err := s.Named(n.Name)
				if err == nil {
					l.Leases, err = of.CountLeases(ctx)
				}
				return err
			})
		})
	}
	return list, g.Wait()
}

// describe says what a network's configuration is.
func (l *listedNetwork) describe(config []byte) {
	if json.Valid(config) {
		l.Config = subnet.Redact(config)
	}
	n, err := subnet.ParseNetwork(config)
	if err != nil {
		l.Error = err.Error()
		return
	}
	l.Backend = n.Backend.Type
	for _, p := range n.Pools {
		l.Ranges = append(l.Ranges, p.Prefix.String())
	}
	if err := backend.Check(n.Backend); err != nil {
		l.Error = err.Error()
	}
}

func (a *app) networkDeleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a network of a name, with its leases, policies and peerings",
		Long: `Delete a network of a name, with all that etcd has of it: reservations, policies, peerings. It is refused while hosts
hold leases in it. With --force those go too: hosts that join all networks leave it, and containers that are in it lose it. The
network that has no name is not deleted: see overlayctl network set.`,
		Args: arguments("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.deleteNetwork(cmd.Context(), args[0], force) },
	}
	cmd.Flags().BoolVar(&force, "force", false, "also if hosts are in it")
	return cmd
}

func (a *app) deleteNetwork(ctx context.Context, name string, force bool) error {
	if err := subnet.ValidNetworkName(name); err != nil {
		return err
	}
	held, err := a.networks(ctx)
	if err != nil {
		return err
	}
	config := held.Find(name)
	if config.ModRevision == 0 {
		return noNetwork(name)
	}
	// In one that nobody can read no host holds anything.
	if _, err := subnet.ParseNetwork(config.Config); err == nil && !force {
		of := *a
		of.overlay = name
		listing, err := of.listing(ctx)
		if err != nil {
			return err
		}
		var who []string
		for _, r := range listing.Records {
			if r.LeaseID != 0 {
				who = append(who, nameLease(r.Lease))
			}
		}
		if len(who) > 0 {
			return fmt.Errorf("%s of network %s (take it out of their \"networks\" first, or --force):\n  %s",
				plural(len(who), "host")+" would lose their lease", name, strings.Join(bound(who), "\n  "))
		}
	}
	err = a.askAll(ctx, func(ctx context.Context, s *etcdstore.Store) error { return s.DeleteNetwork(ctx, held, name, force) })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "deleted %s\n", name)
	return err
}
