package fastpath

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/task"
)

// Flags of a peer in fastpath.c.
const (
	flagTunnel = 1 << iota
	flagNear
	flagZeroChecksum
	flagByKernel
)

// ownSubnets is the owner of Own.Subnets.
const ownSubnets = ""

// peer is what is wanted and had for a subnet.
type peer struct {
	subnet netip.Prefix
	wanted []claimed // the last one holds: a subnet changes owners by being claimed anew
	had    programPeer
	there  bool // had is in the kernel
}

type claimed struct {
	owner string
	peer  Peer
}

// Replace says what all owners have; others have nothing. What is gone is gone when it returns.
func (p *Path) Replace(all []Claim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	have := make(map[string]bool, len(all)+1)
	have[ownSubnets] = true
	for _, c := range all {
		have[c.Owner] = true
	}
	all = slices.Clone(all)
	for owner := range p.owners {
		if !have[owner] {
			all = append(all, Claim{Owner: owner})
		}
	}
	p.claim(all)
}

// Update is Replace for some owners.
func (p *Path) Update(changed []Claim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claim(changed)
}

func (p *Path) claim(changed []Claim) {
	var touched []netip.Prefix // perhaps twice
	for _, c := range changed {
		for _, subnet := range p.owners[c.Owner] {
			e := p.peers[subnet]
			e.wanted = slices.DeleteFunc(e.wanted, func(w claimed) bool { return w.owner == c.Owner })
			touched = append(touched, subnet)
		}
		delete(p.owners, c.Owner)
		for _, to := range c.Peers {
			subnet := to.Subnet.Masked()
			if p.peers[subnet] == nil {
				p.peers[subnet] = &peer{subnet: subnet}
			}
			e := p.peers[subnet]
			e.wanted = append(e.wanted, claimed{c.Owner, to})
			p.owners[c.Owner] = append(p.owners[c.Owner], subnet)
			touched = append(touched, subnet)
		}
	}
	p.bringPeers(slices.Values(touched))
}

// bringPeers brings some subnets to the kernel: first goes what must not be there any more. At no time has a wide one what
// belongs to one inside it.
func (p *Path) bringPeers(subnets iter.Seq[netip.Prefix]) {
	if p.own.Underlay == 0 { // nothing is fast, and SetOwn brings them all
		p.write()
		return
	}
	var come []*peer
	var keys []programPrefix
	var values []programPeer
	changed := false
	sorted := slices.SortedFunc(subnets, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	for _, subnet := range sorted {
		e := p.peers[subnet]
		if e == nil {
			continue
		}
		want, ok := e.want(p.own)
		switch {
		case ok && (!e.there || want != e.had):
			if !e.there {
				p.lastID++
				want.Id = p.lastID
			}
			come, keys, values = append(come, e), append(keys, keyOf(subnet)), append(values, want)
		case !ok && e.there:
			p.dropPeer(e)
			changed = true
		}
		if !ok {
			delete(p.peers, subnet)
			delete(p.lost, subnet)
		}
	}
	slices.Reverse(come)
	slices.Reverse(keys)
	slices.Reverse(values)
	done := 0
	if len(come) > 1 { // what it does not do is tried one by one
		done, _ = p.kernel.Peers.BatchUpdate(keys, values, nil)
	}
	for i, e := range come {
		if i >= done {
			if err := p.kernel.Peers.Update(&keys[i], &values[i], ebpf.UpdateAny); err != nil {
				if p.lost[e.subnet] == nil {
					p.cfg.Log.Warn("peer cannot be told to the programs", "subnet", e.subnet, "err", err)
				}
				p.lost[e.subnet] = err
				continue
			}
		}
		delete(p.lost, e.subnet)
		changed = true
		had := e.direct()
		e.had, e.there = values[i], true
		p.count(had, e.direct())
	}
	if p.write(); changed {
		task.Signal(p.changed)
	}
}

func (p *Path) dropPeer(e *peer) {
	key := keyOf(e.subnet)
	if err := p.kernel.Peers.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		p.fail(fmt.Errorf("forget peer %s: %w", e.subnet, err))
	}
	p.kernel.Traffics.Delete(e.had.Id)
	p.count(e.direct(), false)
	e.there = false
}

// count keeps how many peers are reached without a tunnel, as one changes from had to has.
func (p *Path) count(had, has bool) {
	if had {
		p.direct--
	}
	if has {
		p.direct++
	}
}

func (e *peer) fast() bool   { return e.there && e.had.Flags&flagByKernel == 0 }
func (e *peer) direct() bool { return e.fast() && e.had.Flags&flagTunnel == 0 }

// want is what the programs are to know of the peer; not ok: nothing. It keeps the number that its packets are counted under.
func (e *peer) want(own Own) (want programPeer, ok bool) {
	if len(e.wanted) == 0 {
		return want, false
	}
	peer := e.wanted[len(e.wanted)-1].peer
	source := peer.Source
	if !source.IsValid() {
		source = peer.Host
	}
	want = programPeer{Id: e.had.Id}
	if !peer.canBeFast(own, source) {
		want.Flags = flagByKernel
		return want, true
	}
	want.Port, want.Mac = order16(peer.Port), peer.MAC
	want.Host.W, want.Source.W = words(peer.Host), words(source)
	if peer.Near {
		want.Flags |= flagNear
	}
	if peer.ZeroChecksum {
		want.Flags |= flagZeroChecksum
	}
	if peer.MAC != (kernel.MAC{}) {
		want.Flags |= flagTunnel
	}
	return want, true
}

func (peer Peer) canBeFast(own Own, source netip.Addr) bool {
	same := func(a netip.Addr) bool { return a.IsValid() && a.Is4() == peer.Subnet.Addr().Is4() }
	if !same(peer.Host) || slices.Contains(own.Subnets, peer.Subnet.Masked()) {
		return false
	}
	if peer.MAC == (kernel.MAC{}) {
		return peer.Near
	}
	ours := func(t Tunnel) bool { return t.VNI == peer.VNI && same(t.Addr) }
	return same(source) && slices.ContainsFunc(own.Tunnels, ours)
}

func keyOf(subnet netip.Prefix) programPrefix {
	k := programPrefix{Bits: uint32(subnet.Bits())}
	if subnet.Addr().Is4() {
		k.Bits += 96
	}
	k.Addr.W = words(subnet.Addr())
	return k
}
