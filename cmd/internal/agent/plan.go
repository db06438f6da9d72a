package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

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
	local   []kernel.Object            // what it receives by, as if the ranges were its own
	others  map[string]backend.Backend // own, and those for peers that are reached another way, by kind
	// late are those of others for which the kernel is asked first: where no peer needs them, that loads no module.
	late map[string]func() (backend.Backend, error)
	// before is the kind of the network's backend before, where one of the two encrypts, while the host receives in that way too.
	before   string
	tunnels  []kernel.VXLAN // by which the host receives now
	shared   map[kernel.Object]kernel.Object
	links    map[kernel.Key]bool // those that the host receives by, now and before, and those that only peers need
	most     int                 // of links
	beside   []beside            // the host's other networks
	rotating bool                // the host waits for its turn to change its wireguard key, or has it
}

// newPlanner plans for network on host.
func newPlanner(network subnet.Network, host Host) (*planner, error) {
	host.Ranges = ranges(&network)
	own, err := backend.New(network.Backend, host.Host)
	if err != nil {
		return nil, err
	}
	p := &planner{network: network, host: host, own: own}
	for _, pool := range network.Pools {
		for _, o := range own.Local(subnet.Endpoint{Subnet: pool.Prefix}) {
			p.local = append(p.local, o)
			if l, ok := o.(kernel.VXLAN); ok {
				p.tunnels = append(p.tunnels, l)
			}
		}
	}
	p.others, p.late = map[string]backend.Backend{}, map[string]func() (backend.Backend, error){}
	for _, kind := range backend.Kinds() {
		bind := func() (backend.Backend, error) { return backend.New(subnet.Backend{Type: kind}, host.Host) }
		switch kind {
		case backend.WireGuard: // a peer has no key of a host whose network is of another kind
			continue
		case "ipip", "udp":
			p.late[kind] = sync.OnceValues(bind)
			continue
		}
		if b, err := bind(); err == nil {
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

// encrypts says whether the network's packets must not leave the host in plain text.
func (p *planner) encrypts() bool { return p.network.Backend.Type == backend.WireGuard }

// lease is what the host tells its peers; without subnets.
func (p *planner) lease(hostID, host string) subnet.Lease {
	l := subnet.Lease{HostID: hostID, Host: host, Machine: p.host.Machine, Backend: p.network.Backend.Type}
	for _, pool := range p.network.Pools {
		f := subnet.FamilyOf(pool.Prefix.Addr())
		e := subnet.Endpoint{PublicIP: p.host.PublicIPs[f], Data: p.own.Data(f)}
		if p.before != "" {
			e.Data = backend.AddAlso(e.Data, p.before, p.others[p.before].Data(f))
		}
		if p.rotating {
			e.Data = markTurn(e.Data)
		}
		l.Endpoints = append(l.Endpoints, e)
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

// peer are the objects that reach a peer, the way its own lease says, and the path in a word. Near says whether a host has no
// gateway before it, and met that wireguard was seen to pass to this peer and back since the host moves to it.
func (p *planner) peer(own, peer subnet.Lease, near func(netip.Addr) bool, met bool) (path string, objs []kernel.Object, err error) {
	send, receive, err := p.ways(peer, met)
	if err != nil {
		return "", nil, err
	}
	path, objs, err = p.reach(own, send, near)
	if receive.Backend == "" || err != nil && !p.encrypts() {
		return path, objs, err
	}
	secretly, more, otherErr := p.reach(own, receive, near)
	if err != nil {
		return secretly, more, otherErr
	}
	for _, o := range more {
		if w, ok := o.(kernel.WGPeer); ok {
			if p.encrypts() {
				w.Keepalive = eager
			}
			objs = append(objs, w)
		}
	}
	return path, objs, nil
}

// eager is how often a peer is told that the host is there, in seconds, whom the host only waits to meet by wireguard: the first
// time is at once.
const eager = 5

// ways are the leases that say how a peer is sent to, and by what wireguard besides it may send; the second is zero if there is
// none. While the network moves to wireguard, a peer is sent to in the way before until it was met by wireguard. Else nothing
// leaves a network that encrypts in plain text.
func (p *planner) ways(peer subnet.Lease, met bool) (send, receive subnet.Lease, err error) {
	var secret, plain subnet.Lease
	second, _ := backend.Also(peer)
	for _, l := range []subnet.Lease{second, peer} {
		if l.Backend == backend.WireGuard {
			secret = l
		} else if len(l.Endpoints) > 0 {
			plain = l
		}
	}
	speaks := secret.Backend != "" && p.others[backend.WireGuard] != nil
	if p.encrypts() && p.before == "" { // whatever else the lease says
		if !speaks {
			err = fmt.Errorf("the network is encrypted, and its lease says %s: not sent in plain text", cmp.Or(peer.Backend, "no backend"))
		}
		return secret, subnet.Lease{}, err
	}
	switch {
	case !speaks && len(plain.Endpoints) == 0:
		return send, receive, errors.New("its lease says wireguard, which this network is not")
	case !speaks:
		return plain, receive, nil
	case len(plain.Endpoints) == 0:
		return secret, receive, nil
	case p.encrypts() && met: // the network moves to wireguard
		return secret, receive, nil
	case !p.encrypts() && peer.Backend == backend.WireGuard: // it moves away, and the peer has not heard of it
		return secret, receive, nil
	}
	return plain, secret, nil
}

// reach are the objects that send to a peer as the backend of its lease has it.
func (p *planner) reach(own, peer subnet.Lease, near func(netip.Addr) bool) (path string, objs []kernel.Object, err error) {
	b, err := p.backend(peer.Backend)
	if err != nil {
		return "", nil, err
	}
	path, objs, err = backend.Reach(b, own, peer, near)
	if err == nil && path == "" {
		err = errors.New("the lease has no subnet of a family that this host has")
	}
	return path, objs, err
}

// wantsNear says whether how a peer is reached depends on whether it is near.
func (p *planner) wantsNear(peer subnet.Lease) bool {
	plain, _, err := p.ways(peer, false)
	if err != nil {
		return false
	}
	b, err := p.backend(plain.Backend)
	return err == nil && b.WantsNear()
}

// admit refuses a peer that needs one link too many. Of its objects it leaves out what the host itself has in any case, and
// lets others that many peers claim be one in memory.
func (p *planner) admit(objs, own []kernel.Object) ([]kernel.Object, error) {
	rest := objs[:0]
	for _, o := range objs {
		if r, ok := o.(kernel.Route); ok && led(r, own) {
			continue
		}
		if k := o.Kind(); k == kernel.KindLink || k == kernel.KindAddress {
			if slices.Contains(own, o) {
				continue
			}
			if key := o.Key(); k == kernel.KindLink && !p.links[key] {
				if err := p.trespass(o); err != nil {
					return nil, err
				}
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

// led says whether a route of the host's own leads where r does.
func led(r kernel.Route, own []kernel.Object) bool {
	return !r.Via.IsValid() && slices.ContainsFunc(own, func(o kernel.Object) bool {
		wide, ok := o.(kernel.Route)
		return ok && !wide.Via.IsValid() && wide.Link == r.Link && wide.Dst.Bits() <= r.Dst.Bits() && wide.Dst.Contains(r.Dst.Addr())
	})
}

// backend is the planner for peers of one kind: a network may be mixed while it moves from one to another.
func (p *planner) backend(kind string) (backend.Backend, error) {
	if kind == "" {
		if kind = p.unnamed(); kind == "" {
			return nil, errors.New("the lease names no backend, as flannel's with udp and alloc, and the network's is another")
		}
	}
	if b, ok := p.others[kind]; ok {
		return b, nil
	}
	var err error
	if late := p.late[kind]; late != nil {
		var b backend.Backend
		if b, err = late(); err == nil {
			return b, nil
		}
	} else {
		_, err = backend.New(subnet.Backend{Type: kind}, p.host.Host)
	}
	return nil, fmt.Errorf("backend %q cannot be reached: %w", kind, err)
}

// unnamed is the backend of leases that name none, as flannel's with udp and alloc do: the network's, or the one that it had
// a moment ago; "" if those are others.
func (p *planner) unnamed() string {
	if kind := p.network.Backend.Type; kind == "udp" || kind == "alloc" {
		return kind
	}
	for _, o := range p.host.Former {
		if _, port := kernel.Tunnel(o); port != 0 {
			return "udp"
		}
	}
	return ""
}
