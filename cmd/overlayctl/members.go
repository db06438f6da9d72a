package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// member is a member of etcd as it is printed.
type member struct {
	Host      string   `json:"host"` // empty: it has not begun yet
	ID        string   `json:"id"`
	Role      string   `json:"role"` // leader, member, learner: it has no vote yet
	Peers     []string `json:"peers"`
	Endpoints []string `json:"endpoints"`
	Bytes     int64    `json:"bytes"` // of its data
	Version   string   `json:"version"`
	Problem   string   `json:"problem"` // empty: it is well
}

func newMember(m etcdstore.EtcdMember) member {
	p := member{
		Host: m.Name, ID: fmt.Sprintf("%x", m.ID), Role: "member", Peers: append([]string{}, m.Peers...),
		Endpoints: append([]string{}, m.Clients...), Bytes: m.Size, Version: m.Version,
	}
	switch {
	case m.Learner:
		p.Role = "learner"
	case m.Leader:
		p.Role = "leader"
	}
	if m.Err != nil {
		p.Problem = m.Err.Error()
	}
	return p
}

func (a *app) membersCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "members",
		Short: "Show and change which hosts run etcd for the network",
		Long: `Show and change which hosts run etcd for the network. With three, any one of them may be away or lost: hosts follow
those that there are by themselves. To change them needs root, on a host that is one.`,
	}, a.membersListCommand(), a.membersAddCommand(), a.membersRemoveCommand())
}

func (a *app) membersListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List etcd's members and how they are",
		Args:  arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var found []etcdstore.EtcdMember
			err := a.askMembers(cmd.Context(), func(ctx context.Context, c *etcdstore.Client) (err error) {
				if found, err = c.EtcdMembers(ctx); err == nil {
					c.AskMembers(ctx, found)
				}
				return err
			})
			if err != nil {
				return err
			}
			list, unwell := []member{}, false
			for _, m := range found {
				list = append(list, newMember(m))
				unwell = unwell || m.Err != nil
			}
			return a.show(list, unwell, func(w io.Writer) {
				row(w, "HOST", "ID", "ROLE", "PEERS AT", "SIZE", "STATE")
				for _, m := range list {
					state := m.Problem
					if state == "" {
						state = "well"
					}
					row(w, m.Host, m.ID, m.Role, strings.Join(m.Peers, ","), fmt.Sprintf("%.1f MB", float64(m.Bytes)/1e6), state)
				}
			})
		},
	}
}

func (a *app) membersAddCommand() *cobra.Command {
	var replaced string
	cmd := &cobra.Command{
		Use:   "add ADDRESS",
		Short: "Let a host run etcd too",
		Long: `Let a host run etcd too, which has joined with "overlayctl join --member" or does so meanwhile. It has no vote until it
has caught up: nothing is lost if it never does, and this may be interrupted and repeated.`,
		Example: `  overlayctl members add 192.0.2.3
  overlayctl members add 192.0.2.4 --replace host-3   # which is lost for good`,
		Args: arguments("ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			peer, err := peerURL(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if replaced != "" {
				if err := a.removeMember(cmd.Context(), c, replaced); err != nil {
					return err
				}
			}
			say := func(what string) { fmt.Fprintln(a.stderr, printable(what)) }
			if err := c.Admit(cmd.Context(), peer, say); err != nil {
				return a.named(err)
			}
			_, err = fmt.Fprintf(a.stdout, "%s is a member of etcd\n", strings.TrimPrefix(peer, "https://"))
			return err
		},
	}
	cmd.Flags().StringVar(&replaced, "replace", "", "`member` that is lost, to be removed first: its host's name, its id or an address")
	return cmd
}

func (a *app) membersRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove (HOST | ID | ADDRESS)",
		Short: "Have a host run etcd no more, or do without one that is lost",
		Args:  arguments("HOST, ID or ADDRESS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			return a.removeMember(cmd.Context(), c, args[0])
		},
	}
}

func (a *app) removeMember(ctx context.Context, c *etcdstore.Client, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*a.timeout)
	defer cancel()
	list, err := c.EtcdMembers(ctx)
	if err != nil {
		return a.named(err)
	}
	var found []etcdstore.EtcdMember
	for _, m := range list {
		if m.Is(name) {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0:
		return fmt.Errorf("no member of etcd is called %q: see overlayctl members list", name)
	case len(found) > 1:
		return fmt.Errorf("%d members of etcd are called %q: name one by its id, see overlayctl members list", len(found), name)
	case len(list) == 1:
		return fmt.Errorf("%q is etcd's only member: add another first", name)
	}
	if err := c.Expel(ctx, found[0].ID); err != nil {
		return a.named(err)
	}
	_, err = fmt.Fprintf(a.stdout, "%s (%x) is no member of etcd any more\n", printable(found[0].Name), found[0].ID)
	return err
}

// peerURL is where a host hears other members.
func peerURL(address string) (string, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		ip, notIP := netip.ParseAddr(strings.Trim(address, "[]"))
		if notIP != nil {
			return "", fmt.Errorf("%q is not an address like 192.0.2.3", address)
		}
		at = netip.AddrPortFrom(ip, etcdstore.PeerPort)
	}
	if at.Addr().IsUnspecified() {
		return "", fmt.Errorf("%q is no address of one host", address)
	}
	return etcdstore.PeerURL(at), nil
}

// askMembers calls f, which speaks to etcd, and gives it --timeout.
func (a *app) askMembers(ctx context.Context, f func(context.Context, *etcdstore.Client) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return a.named(f(ctx, c))
}
