package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/cmd/internal/settings"
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
etcd does not look at what a host writes: of these each can still take what is another's. Policies only an operator writes.`,
		Example: `  overlayctl network roles | sh
  overlayctl network roles --hosts host-1,host-2`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, host := range hosts {
				if !plainName.MatchString(host) {
					return usageError{fmt.Errorf("%q is not a host name", host)}
				}
			}
			listing, err := a.listing(cmd.Context())
			if err != nil {
				return err
			}
			return writeRoles(a.stdout, a.settings.Etcd, listing, hosts)
		},
	}
	cmd.Flags().StringSliceVar(&hosts, "hosts", nil, "comma-separated `names` of hosts (default: those that have a lease)")
	return cmd
}

// plainName is what a shell takes for a word, and etcd for a user.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// writeRoles writes the commands for hosts; for none, those for all that have a lease.
func writeRoles(w io.Writer, etcd settings.Etcd, listing etcdstore.Listing, hosts []string) error {
	prefix := strings.TrimRight(etcd.Prefix, "/")
	reserved := map[string]string{} // the key that a host may write; empty: any
	for _, r := range listing.Records {
		if r.Outside() {
			continue
		}
		key, known := reserved[r.Host]
		if plainName.MatchString(r.Host) {
			if r.LeaseID == 0 && !known {
				key = r.Key()
			}
			reserved[r.Host] = key
		}
	}
	if len(hosts) == 0 {
		hosts = slices.Sorted(maps.Keys(reserved))
	}
	var b strings.Builder
	role := func(name string, grants ...string) {
		fmt.Fprintf(&b, "etcdctl role add %s\n", name)
		for _, grant := range grants {
			fmt.Fprintf(&b, "etcdctl role grant-permission %s %s\n", name, grant)
		}
	}
	read := []string{"read '" + prefix + "/config'"}
	for _, dir := range []string{"/subnets/", "/overlayd/hosts/", "/overlayd/policy", "/overlayd/namespaces/"} { // policy-index and -default too
		read = append(read, "--prefix=true read '"+prefix+dir+"'")
	}
	read = append(read, "--prefix=true readwrite '"+prefix+"/overlayd/endpoints/'")
	b.WriteString("# Hosts read the network and its policies, and write leases and what containers they have.\n")
	role("overlayd", append(slices.Clip(read), "--prefix=true readwrite '"+prefix+"/subnets/'")...)
	b.WriteString("# Who operates it writes all of it.\n")
	role("overlayd-operator", "--prefix=true readwrite '"+prefix+"/'")
	for _, host := range hosts {
		name := "overlayd"
		if key := reserved[host]; key != "" {
			name += "-" + host
			role(name, append(slices.Clip(read), "readwrite '"+prefix+"/subnets/"+key+"'")...)
		}
		fmt.Fprintf(&b, "etcdctl user add %s --no-password\netcdctl user grant-role %s %s\n", host, host, name)
	}
	b.WriteString("# A user root with the role root must be there; then: etcdctl auth enable\n")
	_, err := io.WriteString(w, b.String())
	return err
}
