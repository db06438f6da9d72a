package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func (a *app) networkRolesCommand() *cobra.Command {
	var hosts []string
	cmd := &cobra.Command{
		Use:   "roles",
		Short: "Print the etcdctl commands that give hosts no more rights than they need in an etcd of yours",
		Long: `Print the etcdctl commands that give hosts no more rights than etcd can tell apart, for an etcd that is not
overlayd's own: that one needs none. A host's user is what its certificate has as its common name; without --hosts, those
that have a lease are meant, by their names.

A host whose subnet is reserved may write the key of that subnet alone. All others may write all keys of subnets, for
etcd does not look at what a host writes: of these each can still take what is another's. Policies only an operator writes.

The rights are those in all networks below the prefix that there are: after "overlayctl network create" they want printing again.`,
		Example: `  overlayctl network roles | sh
  overlayctl network roles --hosts host-1,host-2`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, host := range hosts {
				if !plainName.MatchString(host) {
					return usageError{fmt.Errorf("%q is not a host name", host)}
				}
			}
			prefix := strings.TrimRight(a.settings.Etcd.Prefix, "/")
			networks, err := a.rights(cmd.Context(), prefix)
			if err != nil {
				return err
			}
			return writeRoles(a.stdout, prefix, networks, hosts)
		},
	}
	cmd.Flags().StringSliceVar(&hosts, "hosts", nil, "comma-separated `names` of hosts (default: those that have a lease)")
	return cmd
}

// plainName is what a shell takes for a word, and etcd for a user.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// rights are what hosts may do in a network.
type rights struct {
	prefix   string            // of the network
	reserved map[string]string // by host: the name of the one key of a lease that it may write; empty: it may write any
}

// rights asks for the leases of all networks.
func (a *app) rights(ctx context.Context, prefix string) (all []rights, err error) {
	held, err := a.networks(ctx)
	if err != nil {
		return nil, err
	}
	if len(held.All) == 0 {
		_, _, err := a.network(ctx) // which says how to make one
		return nil, err
	}
	for _, n := range held.All {
		of := *a
		of.overlay = n.Name
		listing, err := of.listing(ctx)
		if err != nil {
			return nil, err
		}
		r := rights{prefix: prefix, reserved: reservedKeys(listing)}
		if n.Name != "" {
			r.prefix += "/" + n.Name
		}
		all = append(all, r)
	}
	return all, nil
}

// reservedKeys are the hosts that have a lease, and of those whose subnet is reserved its key.
func reservedKeys(listing etcdstore.Listing) map[string]string {
	reserved := map[string]string{}
	for _, r := range listing.Records {
		if r.Outside() || !plainName.MatchString(r.Host) {
			continue
		}
		key, known := reserved[r.Host]
		if r.LeaseID == 0 && !known {
			key = r.Key()
		}
		reserved[r.Host] = key
	}
	return reserved
}

// grants are a host's rights in a network.
func (r rights) grants(host string) []string {
	grants := []string{"read '" + r.prefix + "/config'"}
	for _, dir := range []string{"/subnets/", "/overlayd/policy", "/overlayd/namespaces/"} { // policy-index and -default too
		grants = append(grants, "--prefix=true read '"+r.prefix+dir+"'")
	}
	grants = append(grants, "--prefix=true readwrite '"+r.prefix+"/overlayd/endpoints/'")
	if key := r.reserved[host]; key != "" {
		return append(grants, "readwrite '"+r.prefix+"/subnets/"+key+"'")
	}
	return append(grants, "--prefix=true readwrite '"+r.prefix+"/subnets/'")
}

// writeRoles writes the commands for hosts; for none, those for all that have a lease.
func writeRoles(w io.Writer, prefix string, networks []rights, hosts []string) error {
	own := map[string]bool{} // by host that has a lease: it has a role for itself
	for _, n := range networks {
		for host, key := range n.reserved {
			own[host] = own[host] || key != ""
		}
	}
	if len(hosts) == 0 {
		hosts = slices.Sorted(maps.Keys(own))
	}
	var b strings.Builder
	role := func(name string, grants ...string) {
		fmt.Fprintf(&b, "etcdctl role add %s\n", name)
		for _, grant := range grants {
			fmt.Fprintf(&b, "etcdctl role grant-permission %s %s\n", name, grant)
		}
	}
	grants := func(host string) (all []string) {
		for _, dir := range []string{"hosts/", etcdstore.NetworkDir, etcdstore.PeeredDir} {
			all = append(all, "--prefix=true read '"+prefix+"/overlayd/"+dir+"'")
		}
		for _, n := range networks {
			all = append(all, n.grants(host)...)
		}
		return all
	}
	b.WriteString("# Hosts read the networks and their policies, and write leases and what containers they have.\n")
	role("overlayd", grants("")...)
	b.WriteString("# Who operates it writes all of it.\n")
	role("overlayd-operator", "--prefix=true readwrite '"+prefix+"/'")
	for _, host := range hosts {
		name := "overlayd"
		if own[host] {
			name += "-" + host
			role(name, grants(host)...)
		}
		fmt.Fprintf(&b, "etcdctl user add %s --no-password\netcdctl user grant-role %s %s\n", host, host, name)
	}
	b.WriteString("# A user root with the role root must be there; then: etcdctl auth enable\n")
	_, err := io.WriteString(w, b.String())
	return err
}
