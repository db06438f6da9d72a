package etcdembed

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

// endpoints is where hosts say, below the prefix, what containers they have: namespace/host id/first address.
const endpoints = "overlayd/endpoints/"

// isHost says whether the caller is the host with an id. A certificate that names none is that of any host that has not joined.
func (g *gate) isHost(c caller, host string) bool {
	return host != "" && host == c.Host || c.Host == "" && !g.hosts.knows(host)
}

// putEndpoint says why an endpoint may not be put: it must be the host's own, by its key, its lease and its addresses. A host whose
// subnet is reserved has none of etcd's leases for that: then the addresses are for those who read them to judge.
func (j *judge) putEndpoint(key, name string, p *pb.PutRequest, compared []*pb.Compare) error {
	_, host, _, err := policy.ParseEndpointKey(name)
	switch {
	case err != nil:
		return j.refuse(key, "an endpoint's key is its namespace, its host's id and its first address")
	case !j.isHost(j.caller, host):
		return j.refuse(key, fmt.Sprintf("it is of host id %q, its certificate is not", host))
	case p.IgnoreValue, p.IgnoreLease:
		return j.refuse(key, "an endpoint is put whole")
	case p.Lease == 0:
		return j.refuse(key, "it would never end: give it the lease of the host's subnet")
	}
	_, e, err := policy.ParsePublished(name, p.Value)
	if err != nil {
		return j.refuse(key, err.Error())
	}
	network, _ := j.within(key)
	lease, err := j.subnetOn(network, p.Lease)
	if err != nil {
		return err
	}
	if lease != nil {
		if lease.HostID != host {
			return j.refuse(key, "the lease is that of "+lease.Who())
		}
		for _, ip := range e.IPs {
			if !slices.ContainsFunc(lease.Subnets(), func(s netip.Prefix) bool { return s.Contains(ip) }) {
				return j.refuse(key, fmt.Sprintf("%v is not in %v, the subnets of %s", ip, lease.Subnets(), lease.Who()))
			}
		}
	}
	return j.change(key, nil, compared)
}

// subnetOn is the lease of a subnet of a network that one of etcd's leases holds, which is the caller's; nil: none.
func (j *judge) subnetOn(network string, id int64) (*subnet.Lease, error) {
	of := held{network, id}
	if l, asked := j.leases[of]; asked {
		return l, nil
	}
	var found *subnet.Lease
	err := j.lease(j.ctx, j.caller, id, func(kv *mvccpb.KeyValue) {
		in, rest := j.within(string(kv.Key))
		if name, ok := strings.CutPrefix(rest, "subnets/"); ok && in == network {
			if l, err := subnet.ParseLease(name, kv.Value); err == nil {
				found = &l
			}
		}
	})
	if err == nil {
		j.leases[of] = found
	}
	return found, err
}
