package agent

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

const (
	// knownWithin is how long a network may take to say what etcd has of it before others are put in force without regard to that:
	// longer than etcd may keep silent before a host comes up as it was.
	knownWithin = 4 * time.Second
	// begunWithin is how long what an earlier run left is kept for a network that does not come up.
	begunWithin = 10 * time.Second
	// appliedWithin is how long the rules may take that keep a network apart which the host joins. It is not longer, so that nothing
	// else of the network waits for a firewall that hangs: what it says stays a problem.
	appliedWithin = 2 * time.Second
)

// Shared is a host that several networks are on: what each of them wants, and has, so that none takes what is another's.
type Shared struct {
	begun chan struct{}
	open  func() // closes it
	timer *time.Timer

	mu     sync.Mutex // guards what follows
	all    map[string]*Share
	peered map[etcdstore.Peering]bool
	left   map[string]subnet.Network // that the host was in, and may still have containers of
	follow func()                    // is called after it changed which addresses are which network's; nil: nobody cares
}

// Share is one network's part of a host that it shares with others. A nil Share is that of the only network of a host.
type Share struct {
	of      *Shared
	name    string
	changed chan struct{}

	// Guarded by of.mu.
	known   time.Time       // until when it need not be known what etcd has of the network; zero: it is
	wants   *subnet.Network // that; nil: nothing
	config  string          // the same, as it stands there
	created int64           // at etcd's revision; 0: not known
	has     *Holding        // what is in force; nil: nothing
	begun   bool            // or will not soon be
}

// Holding is what a network has for itself on a host.
type Holding struct {
	Network subnet.Network
	Links   string   // by which its packets travel, in quotes, with ", " between them
	VNIs    []uint32 // at which vxlan of it may come; sorted
}

// NewShared is of a host that is in the networks of these names, as far as is known when it starts.
func NewShared(names ...string) *Shared {
	s := &Shared{begun: make(chan struct{}), all: map[string]*Share{}, left: map[string]subnet.Network{}}
	s.open = sync.OnceFunc(func() { close(s.begun) })
	s.timer = time.AfterFunc(begunWithin, s.open)
	for _, name := range names {
		s.Join(name)
	}
	return s
}

// Begun is closed when all networks that were there at the start have said what they want of the kernel, or will not soon.
func (s *Shared) Begun() <-chan struct{} { return s.begun }

// Join returns a network's share, the same one for as long as it does not leave.
func (s *Shared) Join(name string) *Share {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.all[name]
	if sh == nil {
		sh = &Share{of: s, name: name, changed: make(chan struct{}, 1), known: time.Now().Add(knownWithin)}
		s.all[name] = sh
		time.AfterFunc(knownWithin+time.Second/10, func() { task.Signal(sh.changed) })
	}
	return sh
}

// Leave ends a network's share. What containers it may still have on the host reach nothing of others.
func (s *Shared) Leave(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.all[name]
	if sh == nil {
		return
	}
	delete(s.all, name)
	if sh.has != nil {
		s.left[name] = sh.has.Network
	}
	s.began(sh)
	s.tell(nil)
}

// SetPeerings says which networks reach each other.
func (s *Shared) SetPeerings(all []etcdstore.Peering) {
	peered := map[etcdstore.Peering]bool{}
	for _, p := range all {
		peered[p] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !maps.Equal(peered, s.peered) {
		s.peered = peered
		s.tell(nil)
	}
}

// Serves tells which network's range an address is in; ok is false if it is in none's.
func (s *Shared) Serves(addr netip.Addr) (network string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, sh := range s.all {
		if sh.has != nil && sh.has.Network.Contains(netip.PrefixFrom(addr, addr.BitLen())) {
			return name, true
		}
	}
	return "", false
}

// Follow has f called after it changed which network Serves addresses.
func (s *Shared) Follow(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow = f
}

// tell has all networks but one look again at what the others have. The caller holds the lock.
func (s *Shared) tell(but *Share) {
	for _, sh := range s.all {
		if sh != but {
			task.Signal(sh.changed)
		}
	}
}

// began notes that a network has begun, or will not soon. The caller holds the lock.
func (s *Shared) began(sh *Share) {
	sh.begun = true
	for _, o := range s.all {
		if !o.begun {
			return
		}
	}
	s.timer.Stop()
	s.open()
}

// Changed receives after something changed that the network is to look at.
func (sh *Share) Changed() <-chan struct{} {
	if sh == nil {
		return nil
	}
	return sh.changed
}

// want says what etcd has of the network, and since when, or that it has nothing.
func (sh *Share) want(u etcdstore.Update) {
	if sh == nil || !u.Complete {
		return
	}
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	news := !sh.known.IsZero() || sh.config != string(u.Config) || sh.created != u.Created
	sh.known, sh.wants, sh.config, sh.created = time.Time{}, u.Network, string(u.Config), u.Created
	if news {
		sh.of.tell(sh)
	}
}

// ready says whether it is known of all networks what they want, or was waited for.
func (sh *Share) ready() bool {
	if sh == nil {
		return true
	}
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	for _, o := range sh.of.all {
		if o != sh && time.Now().Before(o.known) {
			return false
		}
	}
	return true
}

// take makes n what the network has in force, unless another of the host's networks has in force what it needs, or wants it and
// is older: then it says so.
func (sh *Share) take(n subnet.Network) error {
	if sh == nil {
		return nil
	}
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(sh.of.all)) {
		o := sh.of.all[name]
		if o == sh {
			continue
		}
		if o.has != nil {
			if err := clash(n, o.has.Network); err != nil {
				return fmt.Errorf("network %s is on this host: %w", written(name), err)
			}
		}
		if o.has == nil && o.wants != nil && sh.has == nil && older(o, sh) {
			if err := clash(n, *o.wants); err != nil {
				return fmt.Errorf("network %s is on this host, and older: %w", written(name), err)
			}
		}
	}
	maps.DeleteFunc(sh.of.left, func(_ string, was subnet.Network) bool { return clash(n, was) != nil }) // its addresses are this one's now
	if sh.has == nil {
		sh.has = &Holding{}
	}
	sh.has.Network = n
	sh.of.tell(sh)
	if sh.of.follow != nil {
		sh.of.follow()
	}
	return nil
}

// older says whether a is the older of two networks; the one that has no name is the oldest.
func older(a, b *Share) bool {
	switch {
	case a.name == "" || b.name == "":
		return a.name == ""
	case a.created != b.created:
		return a.created < b.created
	}
	return a.name < b.name
}

// clash is [backend.Clash], and that the kernel takes what comes by ipip, in UDP or not, for any of its networks.
func clash(a, b subnet.Network) error {
	ipip := func(n subnet.Network) bool { return n.Backend.Type == "ipip" || n.Backend.Type == "udp" }
	err := backend.Clash(a, b)
	if err == nil && ipip(a) && ipip(b) {
		err = fmt.Errorf("its backend is %s, whose packets the kernel does not tell from those of %s: use vxlan or wireguard", a.Backend.Type, b.Backend.Type)
	}
	return err
}

// hold says by what links and VNIs the network in force sends and receives.
func (sh *Share) hold(links string, vnis []uint32) {
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	if sh.has != nil && (sh.has.Links != links || !slices.Equal(sh.has.VNIs, vnis)) {
		sh.has.Links, sh.has.VNIs = links, vnis
		sh.of.tell(sh)
	}
}

// begin says that the network has begun, or will not soon.
func (sh *Share) begin() {
	if sh == nil {
		return
	}
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	if !sh.begun {
		sh.of.began(sh)
	}
}

// await waits, for a network that the host joins while others of it are there, until what keeps them apart is: routes lead to it
// then.
func (sh *Share) await(applied <-chan struct{}) {
	if sh == nil {
		return
	}
	select {
	case <-sh.of.begun: // else the kernel itself waits
		select {
		case <-applied:
		case <-time.After(appliedWithin):
		}
	default:
	}
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
	switch {
	case a.denied != nil:
		return a.lookAround()
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

// written is how people call a network.
func written(name string) string { return cmp.Or(name, subnet.DefaultNetwork) }

// apart are the rules by which the network reaches none of the others but those that it is peered with. What a network has left on the
// host has no rules of its own.
func (p *planner) apart() (rules []firewall.Rule) {
	var links []string
	for _, o := range p.local {
		if name := kernel.LinkName(o); name != "" && !slices.Contains(links, name) {
			links = append(links, name)
		}
	}
	own := join(links, "%q")
	for _, o := range p.beside {
		for _, from := range p.network.Pools {
			for _, to := range o.Network.Pools {
				switch from, to := from.Prefix, to.Prefix; {
				case from.Addr().Is4() != to.Addr().Is4():
				case o.Peered:
					rules = append(rules, firewall.Across{From: from, To: to}, firewall.Through{From: from, To: to})
				default:
					rules = append(rules, firewall.Apart{From: from, To: to, FromLinks: own, ToLinks: o.Links})
					if o.Left {
						rules = append(rules, firewall.Apart{From: to, To: from})
					}
				}
			}
		}
	}
	return rules
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
