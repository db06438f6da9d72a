package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// mostLinks is how many links of each family peers may need beside the host's own, as they do while a network moves from one
// VNI to another: a lease can name any.
const mostLinks = 8

// planner plans one host's whole kernel: its own objects and each peer's. It does no I/O, and serves several goroutines at
// once, but for admit.
type planner struct {
	network subnet.Network
	host    Host
	own     backend.Backend
	others  map[string]backend.Backend // own, and those for peers that are reached another way, by kind
	tunnels []kernel.VXLAN             // by which the host receives now
	shared  map[kernel.Object]kernel.Object
	links   map[kernel.Key]bool // those that the host receives by, now and before, and those that only peers need
	most    int                 // of links
}

// newPlanner plans for network on host.
func newPlanner(network subnet.Network, host Host) (*planner, error) {
	own, err := backend.New(network.Backend, host.Host)
	if err != nil {
		return nil, err
	}
	p := &planner{network: network, host: host, own: own}
	for _, pool := range network.Pools {
		for _, o := range own.Local(subnet.Endpoint{Subnet: pool.Prefix}) {
			if l, ok := o.(kernel.VXLAN); ok {
				p.tunnels = append(p.tunnels, l)
			}
		}
	}
	p.others = map[string]backend.Backend{}
	for _, kind := range backend.Kinds() {
		if b, err := backend.New(subnet.Backend{Type: kind}, host.Host); err == nil {
			p.others[kind] = b
		}
	}
	p.others[network.Backend.Type] = own
	p.shared, p.links = map[kernel.Object]kernel.Object{}, map[kernel.Key]bool{}
	for _, o := range host.Former {
		p.links[o.Key()] = true
	}
	p.most = len(p.links) + mostLinks*len(network.Pools)
	return p, nil
}

// lease is what the host tells its peers; without subnets.
func (p *planner) lease(hostID, host string) subnet.Lease {
	l := subnet.Lease{HostID: hostID, Host: host, Machine: p.host.Machine, Backend: p.network.Backend.Type}
	for _, pool := range p.network.Pools {
		f := subnet.FamilyOf(pool.Prefix.Addr())
		l.Endpoints = append(l.Endpoints, subnet.Endpoint{PublicIP: p.host.PublicIPs[f], Data: p.own.Data(f)})
	}
	return l
}

// saidBy says whether the host's lease in etcd tells peers how the plan has them reach it.
func (p *planner) saidBy(l subnet.Lease) bool {
	want := p.lease(l.HostID, l.Host)
	return l.Backend == want.Backend && slices.EqualFunc(l.Endpoints, want.Endpoints, func(a, b subnet.Endpoint) bool {
		return a.PublicIP == b.PublicIP && bytes.Equal(a.Data, b.Data)
	})
}

// self are the objects that the host needs for itself.
func (p *planner) self(own subnet.Lease) (objs []kernel.Object) {
	for _, e := range own.Endpoints {
		objs = append(objs, p.own.Local(e)...)
	}
	return objs
}

// peer are the objects that reach a peer, the way its own lease says, and the path in a word.
func (p *planner) peer(own, peer subnet.Lease, near func(netip.Addr) bool) (path string, objs []kernel.Object, err error) {
	b, err := p.backend(peer.Backend)
	if err != nil {
		return "", nil, err
	}
	for _, e := range peer.Endpoints {
		mine, ok := own.Endpoint(subnet.FamilyOf(e.Subnet.Addr()))
		if !ok {
			continue
		}
		way, more, err := b.Peer(mine, e, b.WantsNear() && near(e.PublicIP))
		if err != nil {
			return "", nil, err
		}
		if path = way; objs == nil { // some backends have none
			objs = more
		} else {
			objs = append(objs, more...)
		}
	}
	if path == "" {
		return "", nil, errors.New("the lease has no subnet of a family that this host has")
	}
	return path, objs, nil
}

// admit refuses a peer that needs one link too many. Of its objects it leaves out what the host itself has in any case, and
// lets others that many peers claim be one in memory.
func (p *planner) admit(objs, own []kernel.Object) ([]kernel.Object, error) {
	rest := objs[:0]
	for _, o := range objs {
		if k := o.Kind(); k == kernel.KindLink || k == kernel.KindAddress {
			if slices.Contains(own, o) {
				continue
			}
			if key := o.Key(); k == kernel.KindLink && !p.links[key] {
				if len(p.links) >= p.most {
					return nil, fmt.Errorf("the lease needs one more link than the %d that peers may need beside the network's: %s", mostLinks, o)
				}
				p.links[key] = true
			}
			if _, ok := p.shared[o]; !ok {
				p.shared[o] = o
			}
			o = p.shared[o]
		}
		rest = append(rest, o)
	}
	return rest, nil
}

// backend is the planner for peers of one kind: a network may be mixed while it moves from one to another.
func (p *planner) backend(kind string) (backend.Backend, error) {
	if b, ok := p.others[kind]; ok {
		return b, nil
	}
	if kind == "" {
		return nil, errors.New("the lease names no backend: flannel's udp and alloc cannot be reached")
	}
	_, err := backend.New(subnet.Backend{Type: kind}, p.host.Host)
	return nil, fmt.Errorf("backend %q cannot be reached: %w", kind, err)
}
