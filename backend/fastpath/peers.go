package fastpath

import (
	"errors"
	"fmt"
	"iter"
	"maps"
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
	have := map[string]bool{ownSubnets: true}
	for _, c := range all {
		have[c.Owner] = true
	}
	for owner := range p.owners {
		if !have[owner] {
			all = append(all[:len(all):len(all)], Claim{Owner: owner})
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
	touched := map[netip.Prefix]bool{}
	for _, c := range changed {
		for _, subnet := range p.owners[c.Owner] {
			e := p.peers[subnet]
			e.wanted = slices.DeleteFunc(e.wanted, func(w claimed) bool { return w.owner == c.Owner })
			touched[subnet] = true
		}
		delete(p.owners, c.Owner)
		for _, to := range c.Peers {
			subnet := to.Subnet.Masked()
			if p.peers[subnet] == nil {
				p.peers[subnet] = &peer{}
			}
			e := p.peers[subnet]
			e.wanted = append(e.wanted, claimed{c.Owner, to})
			p.owners[c.Owner] = append(p.owners[c.Owner], subnet)
			touched[subnet] = true
		}
	}
	p.bringPeers(maps.Keys(touched))
}

// bringPeers brings some subnets to the kernel: first goes what must not be there any more. At no time has a wide one what
// belongs to one inside it.
func (p *Path) bringPeers(subnets iter.Seq[netip.Prefix]) {
	var come []netip.Prefix
	for _, subnet := range slices.SortedFunc(subnets, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) {
		e := p.peers[subnet]
		want, ok := e.want(p.own)
		switch {
		case ok && (!e.there || want != e.had):
			come = append(come, subnet)
		case !ok && e.there:
			p.dropPeer(subnet, e)
		}
		if !ok {
			delete(p.peers, subnet)
			delete(p.lost, subnet)
		}
	}
	for _, subnet := range slices.Backward(come) {
		e := p.peers[subnet]
		want, _ := e.want(p.own)
		p.putPeer(subnet, e, want)
	}
	p.write()
	task.Signal(p.changed)
}

func (p *Path) putPeer(subnet netip.Prefix, e *peer, want programPeer) {
	if !e.there {
		p.lastID++
		want.Id = p.lastID
	}
	if err := p.kernel.Peers.Update(keyOf(subnet), &want, ebpf.UpdateAny); err != nil {
		if p.lost[subnet] == nil {
			p.cfg.Log.Warn("peer cannot be told to the programs", "subnet", subnet, "err", err)
		}
		p.lost[subnet] = err
		return
	}
	delete(p.lost, subnet)
	had := e.direct()
	e.had, e.there = want, true
	p.count(had, e.direct())
}

func (p *Path) dropPeer(subnet netip.Prefix, e *peer) {
	if err := p.kernel.Peers.Delete(keyOf(subnet)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		p.fail(fmt.Errorf("forget peer %s: %w", subnet, err))
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

func keyOf(subnet netip.Prefix) *programPrefix {
	k := &programPrefix{Bits: uint32(subnet.Bits())}
	if subnet.Addr().Is4() {
		k.Bits += 96
	}
	k.Addr.W = words(subnet.Addr())
	return k
}
