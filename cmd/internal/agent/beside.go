package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// clash is [backend.Clash], and that the kernel takes what comes by ipip, in UDP or not, for any of its networks.
func clash(a, b subnet.Network) error {
	ipip := func(n subnet.Network) bool { return n.Backend.Type == "ipip" || n.Backend.Type == "udp" }
	err := backend.Clash(a, b)
	if err == nil && ipip(a) && ipip(b) {
		err = fmt.Errorf("its backend is %s, whose packets the kernel does not tell from those of %s: use vxlan or wireguard", a.Backend.Type, b.Backend.Type)
	}
	return err
}

// beside is another of a host's networks.
type beside struct {
	Name string
	Holding
	Peered bool // with this one
	Left   bool // it is not served any more
}

// others are the host's other networks, by name.
func (sh *Share) others() (all []beside) {
	if sh == nil {
		return nil
	}
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	sh.sees = true
	for name, o := range sh.of.all {
		if o != sh && o.has != nil {
			p, err := etcdstore.NewPeering(sh.name, name)
			all = append(all, beside{name, *o.has, err == nil && sh.of.peered[p], false})
		}
	}
	for name, was := range sh.of.left {
		all = append(all, beside{Name: name, Holding: Holding{Network: was}, Left: true})
	}
	slices.SortStableFunc(all, func(a, b beside) int { return cmp.Compare(a.Name, b.Name) }) // of one name those that are served come first
	return all
}

// heedOthers is called after something changed of the host's other networks.
func (a *Agent) heedOthers() error {
	if a.denied != nil {
		if err := a.lookAround(); err != nil {
			return err
		}
	}
	switch {
	case a.planner == nil && a.latest.Complete: // it was waited for the others
		if err := a.adopt(a.latest); err != nil {
			return err
		}
		a.advance(true, nil)
	case a.programmed:
		a.program()
	}
	return nil
}

// share says what the network has on the host.
func (a *Agent) share() {
	if a.cfg.Share == nil {
		return
	}
	var vnis []uint32
	var links []string
	objs := append(a.planner.self(a.own.Lease), a.retirement.objs...)
	for o := range a.planner.shared {
		objs = append(objs, o)
	}
	for _, o := range objs {
		if name := kernel.LinkName(o); name != "" && !slices.Contains(links, name) {
			links = append(links, name)
		}
		if l, ok := o.(kernel.VXLAN); ok && !slices.Contains(vnis, l.VNI) {
			vnis = append(vnis, l.VNI)
		}
	}
	slices.Sort(links)
	slices.Sort(vnis)
	a.cfg.Share.hold(join(links, "%q"), vnis)
}

// apart are the rules by which the network reaches none of the others but those that it is peered with. What a network has left on the
// host has no rules of its own.
func (p *planner) apart() (rules []firewall.Rule) {
	var links []string
	for _, o := range p.local {
		if name := kernel.LinkName(o); name != "" && !slices.Contains(links, name) {
			links = append(links, name)
		}
	}
	own, others := join(links, "%q"), ""
	var from [2]string       // the ranges of this network, IPv4 and IPv6
	var to, left [2][]string // of those that are apart from it, and of those of them that are left
	for _, pool := range p.network.Pools {
		from[six(pool.Prefix)] = pool.Prefix.String()
	}
	for _, o := range p.beside {
		for _, pool := range o.Network.Pools {
			f := six(pool.Prefix)
			switch mine, ok := p.network.Pool(subnet.FamilyOf(pool.Prefix.Addr())); {
			case !ok:
			case o.Peered:
				rules = append(rules, firewall.Across{From: mine.Prefix, To: pool.Prefix}, firewall.Through{From: mine.Prefix, To: pool.Prefix})
			case o.Left:
				left[f] = append(left[f], pool.Prefix.String())
				fallthrough
			default:
				to[f] = append(to[f], pool.Prefix.String())
			}
		}
		if !o.Peered && o.Links != "" {
			others += ", " + o.Links
		}
	}
	others = strings.TrimPrefix(others, ", ")
	for f := range to {
		if len(to[f]) > 0 {
			rules = append(rules, firewall.Apart{Six: f == 1, From: from[f], To: join(to[f], "%s"), FromLinks: own, ToLinks: others})
			others = "" // once is enough
		}
		if len(left[f]) > 0 {
			rules = append(rules, firewall.Apart{Six: f == 1, From: join(left[f], "%s"), To: from[f]})
		}
	}
	return rules
}

// six is 1 for a range of IPv6, and 0 for one of IPv4.
func six(p netip.Prefix) int {
	if p.Addr().Is6() {
		return 1
	}
	return 0
}

// besides is what the guard is to know of the host's other networks: their ranges, with " " between them, and their VNIs.
func (p *planner) besides() (ranges string, vnis []uint32) {
	var texts []string
	for _, o := range p.beside {
		for _, pool := range o.Network.Pools {
			texts = append(texts, pool.Prefix.String())
		}
		vnis = append(vnis, o.VNIs...)
	}
	return strings.Join(texts, " "), vnis
}

// trespass says why a peer may not have a link: it is another network's, or would take what is for that.
func (p *planner) trespass(o kernel.Object) error {
	l, vxlan := o.(kernel.VXLAN)
	for _, b := range p.beside {
		switch kind := b.Network.Backend.Type; {
		case vxlan && slices.Contains(b.VNIs, l.VNI):
			return fmt.Errorf("the lease names VNI %d, which is network %s's", l.VNI, written(b.Name))
		case !vxlan && !b.Left && (kind == "ipip" || kind == "udp"):
			if name, _ := kernel.Tunnel(o); name != "" {
				return fmt.Errorf("the lease needs %s, which is network %s's", name, written(b.Name))
			}
		}
	}
	return nil
}
