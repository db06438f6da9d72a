package agent

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

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
	sees    bool            // what it wants of the kernel regards what the others have
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
		time.AfterFunc(knownWithin+time.Second/10, func() { // who waits for it waits no more
			s.mu.Lock()
			defer s.mu.Unlock()
			s.tell(nil)
		})
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
	if s.follow != nil {
		s.follow()
	}
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
			sh.sees = false
			task.Signal(sh.changed)
		}
	}
}

// began notes that a network has begun, or will not soon. The kernel is touched once all have, and each knows of what the others have
// then: its guard would drop theirs. The caller holds the lock.
func (s *Shared) began(sh *Share) {
	sh.begun = true
	for _, o := range s.all {
		if !o.begun || o.has != nil && !o.sees {
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
	// Addresses of what was left are this one's now.
	maps.DeleteFunc(sh.of.left, func(_ string, was subnet.Network) bool { return clash(n, was) != nil })
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
	sh.of.began(sh)
}

// regarded says whether what the host's other networks want of the kernel regards what this one has: their guards would drop what it
// sends.
func (sh *Share) regarded() bool {
	if sh == nil {
		return true
	}
	sh.of.mu.Lock()
	defer sh.of.mu.Unlock()
	for _, o := range sh.of.all {
		if o != sh && o.has != nil && o.begun && !o.sees {
			return false
		}
	}
	return true
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

// written is how people call a network.
func written(name string) string { return cmp.Or(name, subnet.DefaultNetwork) }
