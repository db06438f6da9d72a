package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go4.org/netipx"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// admitWithin is how long a peer's routes wait for what lets its packets in: nftables may be busy with somebody else's rules.
const admitWithin = 10 * time.Millisecond

// Shield says what is hidden, and what is kept out.
type Shield struct {
	Masquerade bool
	Guard      firewall.Guard // its parts
}

func (s Shield) guards() bool { return s.Guard != firewall.Guard{} }

// elements are what is in sets of the firewall.
type elements interface {
	Replace(all []firewall.Claim)
	Update(changed []firewall.Claim) (done <-chan struct{})
	Status() task.Status
	Changed() <-chan struct{}
}

// guard is the network's, of which the parts are given.
func (p *planner) guard(s Shield, local []netip.Prefix) firewall.Guard {
	g := s.Guard
	g.Bare, g.Routed = !s.Masquerade, p.network.Backend.Type == "extension"
	for i, pool := range p.network.Pools {
		var own netipx.IPSetBuilder // joins those that overlap
		for _, s := range local {
			if pool.Prefix.Addr().Is4() == s.Addr().Is4() {
				own.AddPrefix(s.Masked())
			}
		}
		set, _ := own.IPSet() // of prefixes that are valid
		g.Ranges[i] = firewall.Range{Network: pool.Prefix, Local: join(set.Prefixes(), "%v")}
	}
	g.Kinds, g.IPIP, g.Ends = p.overlayKinds()
	ranges, vnis := p.besides()
	g.Network, g.Beside = p.host.Network, ranges
	vnis = append(vnis, p.strangers()...)
	slices.Sort(vnis)
	g.Uplinks, g.Others = join(p.host.Uplinks, "%q"), join(slices.Compact(vnis), "%d")
	return g
}

func join[T any](things []T, format string) string {
	texts := make([]string, len(things))
	for i, thing := range things {
		texts[i] = fmt.Sprintf(format, thing)
	}
	return strings.Join(texts, ", ")
}

// overlayKinds are those of the links by which packets come to the host, now and before; "" if that is vxlan alone. It says too
// whether one is for protocol 4, and where links for that lead to that are others'.
func (p *planner) overlayKinds() (kinds string, protocol4 bool, ends string) {
	has := map[string]bool{"vxlan": !p.encrypts() || p.before != ""}
	if p.others[backend.WireGuard] != nil {
		has["wireguard"], has["tun"] = true, true // the kernel's, or a process's
	}
	for _, o := range append(slices.Clone(p.local), p.host.Former...) {
		switch o := o.(type) {
		case kernel.IPIP:
			has["ipip"], protocol4 = true, protocol4 || o.Port == 0
		case kernel.UDPTun:
			has["tun"] = true
		}
	}
	maps.DeleteFunc(has, func(_ string, yes bool) bool { return !yes })
	if kinds = join(slices.Sorted(maps.Keys(has)), "%q"); kinds == `"vxlan"` {
		kinds = ""
	}
	if !protocol4 {
		return kinds, false, ""
	}
	var far []netip.Addr
	for _, e := range p.host.Present {
		if e.Remote.IsValid() {
			far = append(far, e.Remote)
		}
	}
	slices.SortFunc(far, netip.Addr.Compare)
	return kinds, true, join(slices.Compact(far), "%s")
}

// strangers are the VNIs of vxlan links that are not the network's, and hear the same ports as its own.
func (p *planner) strangers() (vnis []uint32) {
	for _, e := range p.host.Present {
		l, ok := e.Link.(kernel.VXLAN)
		shares := func(o kernel.VXLAN) bool { return o.Port == l.Port && o.VNI != l.VNI }
		if ok && e.Foreign == "" && strings.HasPrefix(l.Name, "overlay") { // ours, of another VNI
			continue
		}
		if ok && slices.ContainsFunc(p.tunnels, shares) {
			vnis = append(vnis, l.VNI)
		}
	}
	slices.Sort(vnis)
	return slices.Compact(vnis)
}

// admitted is what the guard lets in for the sake of kernel objects, and of the lease that they are for: where that is reached
// without a tunnel, what comes from there may come without.
func (p *planner) admitted(objs []kernel.Object, lease subnet.Lease) (let []firewall.Element) {
	second, _ := backend.Also(lease)
	for _, lease := range []subnet.Lease{lease, second} {
		for _, e := range lease.Endpoints {
			source, _ := backend.Told(e.Data)
			for _, ip := range []netip.Addr{e.PublicIP, source} {
				if ip.IsValid() {
					let = append(let, firewall.Peer(ip))
				}
			}
		}
		if b, err := p.backend(lease.Backend); err == nil && b.WantsNear() {
			let = append(let, firewall.Near(p.host.Link))
		}
	}
	for _, o := range objs {
		if name := kernel.LinkName(o); name != "" {
			let = append(let, firewall.Link(name))
		}
		if l, ok := o.(kernel.VXLAN); ok {
			let = append(let, firewall.Port(l.Port))
		}
		if _, port := kernel.Tunnel(o); port != 0 {
			let = append(let, firewall.Port(port))
		}
	}
	if backend.ByOthers(lease.Backend) {
		for _, link := range slices.Concat(p.host.Uplinks, []string{p.host.Link}) {
			let = append(let, firewall.Near(link))
		}
	}
	for i, e := range let {
		let[i] = e.In(p.host.Network)
	}
	return let
}

// admit is what the guard lets in for owners of kernel objects.
func (a *Agent) admit(claims []kernel.Claim) []firewall.Claim {
	if !a.cfg.Shield.guards() {
		return nil
	}
	let := make([]firewall.Claim, len(claims))
	for i, c := range claims {
		let[i].Owner = c.Owner
		switch peer := a.peers[c.Owner]; {
		case c.Owner == self:
			let[i].Elements = a.planner.admitted(c.Objects, subnet.Lease{Backend: a.network.Backend.Type})
		case c.Owner == retired:
			let[i].Elements = a.planner.admitted(c.Objects, subnet.Lease{})
			if a.retirement.near {
				let[i].Elements = append(let[i].Elements, firewall.Near(a.planner.host.Link).In(a.cfg.Network))
			}
		case len(c.Objects) > 0, peer != nil && backend.ByOthers(peer.Backend):
			let[i].Elements = a.planner.admitted(c.Objects, peer.Lease)
		}
	}
	return let
}

// admitAll has the guard let in what all owners need, and nothing else.
func (a *Agent) admitAll(all []kernel.Claim) { a.cfg.Elements.Replace(a.admit(all)) }

// bringAbout changes the objects of some owners in the kernel, after the guard lets in who comes, and before it shuts out who
// goes. Meanwhile nothing of theirs is fast.
func (a *Agent) bringAbout(changed []kernel.Claim) {
	a.holdBack(changed)
	let := a.admit(changed)
	come := slices.DeleteFunc(slices.Clone(let), func(c firewall.Claim) bool { return c.Elements == nil })
	if len(come) > 0 {
		select {
		case <-a.cfg.Elements.Update(come):
		case <-time.After(admitWithin):
		}
	}
	a.cfg.Kernel.Update(changed)
	if len(come) < len(let) {
		a.cfg.Elements.Update(slices.DeleteFunc(let, func(c firewall.Claim) bool { return c.Elements != nil }))
	}
	a.cfg.Fast.Update(a.fastClaims(changed))
}

// guardStatus is what the guard is and did.
func (a *Agent) guardStatus() api.Guard {
	g := api.Guard{Parts: []string{}}
	for name, on := range map[string]bool{"tunnel": a.cfg.Shield.Guard.Tunnel, "overlay": a.cfg.Shield.Guard.Overlay, "containers": a.cfg.Shield.Guard.Containers} {
		if on {
			g.Parts = append(g.Parts, name)
		}
	}
	slices.Sort(g.Parts)
	if err := a.cfg.Unguarded(); err != nil {
		g.Missing = err.Error()
	}
	g.Dropped, _ = a.cfg.Dropped()
	return g
}
