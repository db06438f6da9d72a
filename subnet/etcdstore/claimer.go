package etcdstore

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/subnet"
)

// State is how the host stands to its lease.
type State string

// The states of a lease.
const (
	Waiting  State = "waiting"  // for etcd, for a network config, or for Advertise
	Claiming State = "claiming" // on the way, or in want of a free subnet
	Held     State = "held"
	Taken    State = "taken"  // the subnet that was held belongs to another host now
	Copied   State = "copied" // the host's identity is that of another, which may live: take another
)

// claimer decides what becomes of the host's own lease, from what is seen in etcd and what the host wants. It does no I/O
// and sets no timer; each decision is made anew from what is there. What it asks for has happened when it is seen.
//
// A claim is a transaction that creates the key, and it counts when the watch has told of it and of everything before: if
// an older key has an address of it the host gives it back, without having used it. So no two hosts have one address,
// under whatever keys, and a claim costs etcd the same whatever the number of leases.
type claimer struct {
	wish subnet.Lease // what the lease is to say; without Endpoints the host has not said yet
	nic  string       // MAC of the underlay's link
	past past

	place []netip.Prefix // that is held or to be claimed; nil: none
	key   string         // of place
	fresh bool           // claimed by this process, and not yet held
	kept  []netip.Prefix // the half of place that the host had before a move that is not seen yet to have gone well
	had   bool           // the host has held place: it does not choose another by itself
	last  subnet.Record  // as last held
	wrote int64          // revision of what this process put last; 0: nothing
	left  string         // key that the host was told to leave
}

// past is what the host remembers of itself.
type past struct {
	subnets  []netip.Prefix // that it had, asked for again
	last     *subnet.Record // of these the lease; nil: it does not remember one
	sameBoot bool           // it was this boot of this machine
	nic      string         // MAC that the underlay's link had
}

// facts are what a decision is made from.
type facts struct {
	network  subnet.Network
	set      *subnet.Set
	mine     map[string]*subnet.Record  // the leases that count and are the host's own
	held     func([]netip.Prefix) bool  // whether a peer that vanished may come back for one of them
	vacant   func(...netip.Prefix) bool // whether no container has an address of them
	grant    grant
	revision int64 // of set
}

// decision is what is to be said and done about the own lease.
type decision struct {
	state  State
	reason string         // what needs attention, or is waited for; empty if all is well
	keep   int64          // etcd's lease to renew; 0: none
	drop   bool           // the one that the session has is of no use any more
	open   bool           // a new one is needed first
	write  *write         // nil: nothing
	leaves []netip.Prefix // subnets that the host gives up when no container has an address of them
}

// write is a change of own keys in one transaction.
type write struct {
	key         string // to put
	place       []netip.Prefix
	value       []byte         // nil: delete the key
	modRevision int64          // that the key must have; 0: there must be none
	leaseID     int64          // of etcd's lease to hold it; 0: none
	from        *subnet.Record // the lease that this one takes the place of; nil: none
	calm        bool           // nobody waits for it
}

// decide says what the own lease calls for.
func (c *claimer) decide(f facts) decision {
	f.network = restrict(f.network, c.wish)
	c.find(f)
	if c.place != nil && !c.had && c.kept == nil {
		if there, r := c.look(f); there == theirs || c.rejection(f) != nil {
			if there == ours && c.fresh { // the race for an address was lost
				return decision{state: Claiming, write: &write{key: c.key, modRevision: r.ModRevision}}
			}
			c.leave()
		}
	}
	d := c.judge(f)
	if stays := d.state != Taken && c.reserved(f) == ""; (c.had || d.state == Taken) && (!stays || !f.network.Fits(c.place)) {
		if !stays {
			d.leaves = c.have()
		}
		if !c.had || f.vacant(c.have()...) { // it was lost before anybody heard of it, or nobody has an address of it
			c.left = c.key
			c.leave()
			// One etcd lease never holds two keys of which one was the host's: renewing it would keep both.
			f.grant = grant{dead: f.grant.id}
			d = c.judge(f)
			d.drop = true
		}
	}
	if d.state == Held && d.write == nil {
		c.giveBack(f, &d)
	}
	return d
}

// find goes along with a move that is seen before etcd has said that it is done, or whose answer was lost.
func (c *claimer) find(f facts) {
	if there, _ := c.look(f); there != nobody || !c.had {
		return
	}
	for key, r := range f.mine {
		if r.HostID == c.wish.HostID && len(c.shared(r.Subnets())) > 0 {
			c.moved(key, r.Subnets(), r.ModRevision)
			return
		}
	}
}

// moved takes in that the lease is under another key now.
func (c *claimer) moved(key string, place []netip.Prefix, revision int64) {
	c.place, c.key, c.kept, c.wrote = place, key, c.shared(place), revision
}

// shared are those of some subnets that the host has already.
func (c *claimer) shared(place []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(place), func(p netip.Prefix) bool { return !slices.Contains(c.have(), p) })
}

// leave lets the host choose anew.
func (c *claimer) leave() {
	c.place, c.key, c.fresh, c.kept, c.had, c.wrote = nil, "", false, nil, false, 0
}

// look says whose the value at the own key is.
func (c *claimer) look(f facts) (owner, *subnet.Record) {
	r, err := f.set.Find(c.key)
	switch {
	case r == nil:
		return nobody, new(subnet.Record)
	case err != nil:
		return junk, r
	}
	return ownerOf(r.Lease, c.wish), r
}

// rejection says why the own lease does not count, or would not if it were put.
func (c *claimer) rejection(f facts) error {
	if r, _ := f.set.Find(c.key); r != nil {
		if elder, ok := f.set.Elder(c.key); ok && c.fresh {
			return fmt.Errorf("lease %s overlaps %s, which is older", c.key, elder)
		}
		return f.set.Rejection(c.key)
	}
	for key, r := range f.set.Overlapping(c.place) {
		if ownerOf(r.Lease, c.wish) != ours {
			return fmt.Errorf("subnet %s overlaps %s, which belongs to %s now", c.key, key, nameOf(r.Lease))
		}
	}
	return nil
}

// judge says what the own key in etcd calls for, and chooses one if there is none.
//
// Junk and flannel's values with our own address are written over: nobody else claims the subnet with them, while
// peers cannot reach us until our value is back. Values of other hosts are not: two hosts with one subnet is worse
// than one host without.
func (c *claimer) judge(f facts) decision {
	if c.place == nil {
		if d, ok := c.choose(f); !ok {
			return d
		}
	}
	there, r := c.look(f)
	rejected := c.rejection(f)
	fits := f.network.Fits(c.place)
	var beside string
	var older bool
	if rejected != nil || !fits {
		beside, older = c.beside(f)
	}
	switch {
	case there == theirs:
		return decision{state: Taken, reason: fmt.Sprintf("subnet %s belongs to %s now", c.key, nameOf(r.Lease))}
	case there == nobody && !fits && c.had:
		return decision{state: Taken, reason: fmt.Sprintf("the lease of %s is lost, and the network does not lease this subnet any more", c.key)}
	case rejected != nil && there == nobody, rejected != nil && there == ours && (fits && c.kept == nil || older || c.kept != nil && beside != ""):
		return decision{state: Taken, reason: rejected.Error()}
	}
	if there == ours && rejected == nil && (r.ModRevision == c.wrote || (c.had || c.kept != nil) && r.HostID == c.wish.HostID) {
		c.hold(r) // also if the host wants to say something else, or be elsewhere, by now
	}
	if there == ours && (rejected != nil || !fits) && beside == "" {
		if d, ok := c.move(f, r); ok {
			return d
		}
	}
	d := c.put(f, there, r)
	if d.write == nil && !d.open && d.reason == "" {
		c.hold(r)
		d.state = Held
		if !fits {
			d.reason = fmt.Sprintf("the network does not lease subnet %s any more", c.key)
			if beside != "" {
				d.reason += fmt.Sprintf(", and another would be younger than %s, which overlaps it: release that if its host is gone (overlayctl leases release)", beside)
			}
		} else if key := c.reserved(f); key != "" {
			d.reason = fmt.Sprintf("subnet %s is reserved for this host, which has %s: it moves when no container has an address of that", key, c.key)
		}
	}
	return d
}

// beside is another key that has an address of what the host means to keep, one that is older if there is any.
func (c *claimer) beside(f facts) (key string, older bool) {
	for key, older = range f.set.Beside(c.key, c.have()) {
		if older {
			break
		}
	}
	return key, older
}

// have is what the host has of its place: what was to be beside it may be somebody else's.
func (c *claimer) have() []netip.Prefix {
	if c.kept != nil {
		return c.kept
	}
	return c.place
}

// hold takes note that the lease is the host's.
func (c *claimer) hold(r *subnet.Record) {
	c.had, c.fresh, c.last = true, false, *r
	c.kept = nil
}

// put has the own key say what the host wants, and be held by the lease that the host renews.
func (c *claimer) put(f facts, there owner, r *subnet.Record) decision {
	d := c.begin(f, there, r)
	w := write{key: c.key, place: c.place, modRevision: r.ModRevision, leaseID: d.keep}
	if there == nobody && !c.moving(f) {
		d.state = Claiming
	}
	want := leaseFor(c.wish, c.place)
	if there == ours && !d.open && w.leaseID == r.LeaseID && r.Lease.Equal(want) {
		return d
	}
	w.calm = there == ours && c.had && w.leaseID == r.LeaseID && sameAddresses(r.Lease, want)
	return c.send(d, w, want, f)
}

// begin says which of etcd's leases is to hold the own key.
func (c *claimer) begin(f facts, there owner, r *subnet.Record) decision {
	d := decision{state: Claiming}
	if c.had && (c.kept == nil || c.moving(f)) { // what is on its way changes the lease, but not whose it is
		d.state = Held
	}
	switch {
	case there == ours && r.LeaseID == 0: // a reservation stays one
	case there == ours && f.grant.id == 0 && r.HostID == c.wish.HostID && r.LeaseID != f.grant.dead:
		d.keep = r.LeaseID // as an earlier run of ours left it
	default:
		d.keep, d.open = f.grant.id, f.grant.id == 0
	}
	return d
}

// moving says whether a move is done that is not seen yet.
func (c *claimer) moving(f facts) bool { return c.kept != nil && c.wrote > f.revision }

// send completes a decision to write.
func (c *claimer) send(d decision, w write, l subnet.Lease, f facts) decision {
	var err error
	if w.value, err = l.Value(); err != nil {
		return decision{state: d.state, reason: err.Error(), keep: d.keep}
	}
	if d.open && f.grant.err != nil {
		d.reason = "etcd refuses to write the lease: " + f.grant.err.Error()
	}
	if !d.open {
		d.write = &w
	}
	return d
}

// move changes the lease to one with the families that the network has now, and keeps the half that it has: containers
// have addresses of that. The key is another, so one transaction deletes the one and creates the other. Nobody can take
// the kept half meanwhile; but the new key is younger than any other that names an address of it, so there must be none. It is
// no move if the network leases no half of it.
func (c *claimer) move(f facts, r *subnet.Record) (decision, bool) {
	have := c.have()
	kept := fitting(f.network, have)
	if len(kept) == 0 || len(kept) == len(f.network.Pools) && len(kept) == len(have) {
		return decision{}, false
	}
	d := c.begin(f, ours, r)
	place, err := f.network.Complete(kept, c.wish.HostID, c.taken(f))
	if err != nil {
		d.open, d.reason = false, err.Error()
		return d, c.had
	}
	return c.send(d, write{key: keyOf(place), place: place, leaseID: d.keep, from: r}, leaseFor(c.wish, place), f), true
}

// done takes in that etcd did a write, at a revision. What it changed is seen later.
func (c *claimer) done(w *write, revision int64) {
	if w.value == nil {
		if w.key == c.key {
			c.leave()
		}
		return
	}
	switch {
	case w.from != nil && w.key != c.key:
		c.moved(w.key, w.place, revision)
	case w.from != nil || c.kept == nil: // of a move, its own revision is the one to be seen
		c.wrote = revision
	}
}

// choose picks the subnets to claim: a reservation for the host, else a lease that it has, else what it had before if that
// is free, else free ones.
func (c *claimer) choose(f facts) (decision, bool) {
	best, copied := c.best(f)
	switch {
	case copied != nil:
		return decision{state: Copied, reason: fmt.Sprintf("the identity of this host is that of %s, which has subnet %s: this host is a copy of it, or came back with another address and network card",
			nameOf(copied.Lease), copied.Key())}, false
	case best != nil:
		c.place, c.key = best.Subnets(), best.Key()
		return decision{}, true
	}
	place := c.past.subnets
	if len(c.last.Endpoints) > 0 {
		place = c.last.Subnets()
	}
	taken := c.taken(f)
	kept := slices.DeleteFunc(fitting(f.network, place), func(p netip.Prefix) bool { return taken([]netip.Prefix{p}) })
	place, err := f.network.Complete(kept, c.wish.HostID, taken)
	if err != nil {
		return decision{state: Claiming, reason: err.Error()}, false
	}
	c.place, c.key, c.fresh = place, keyOf(place), true
	return decision{}, true
}

// taken says whether somebody has, or may come back for, one of some subnets.
func (c *claimer) taken(f facts) func([]netip.Prefix) bool {
	return func(p []netip.Prefix) bool {
		_, overlaps := f.set.Overlaps(p)
		return overlaps || f.held(p)
	}
}

// best is the lease to go on with among the host's own; nil: there is none. copied is one of the host's identity, in etcd
// or remembered, that nothing proves to be of this machine: the host that put it may live.
func (c *claimer) best(f facts) (best, copied *subnet.Record) {
	if c.past.last != nil && !c.proves(c.past.last) {
		return nil, c.past.last
	}
	rank := 0
	for key, r := range f.mine {
		if r.HostID == c.wish.HostID && !c.proves(r) {
			return nil, r
		}
		// Containers may have the host's own subnet: it stays, also when new leases are made elsewhere.
		stays := r.HostID == c.wish.HostID && key != c.left
		if len(fitting(f.network, r.Subnets())) == 0 && !stays {
			continue
		}
		if n := c.rank(r); n > rank || n == rank && r.CreateRevision < best.CreateRevision {
			best, rank = r, n
		}
	}
	return best, nil
}

// proves says whether a lease of the host's identity is this machine's: it names this host's address, or none, or the
// host remembers to have put it in this boot, or over this network card. A copy of a host has none of these, and the
// host itself loses at least one of them only by a reboot with other hardware at another address.
func (c *claimer) proves(r *subnet.Record) bool {
	return c.past.sameBoot || c.nic != "" && c.nic == c.past.nic || len(c.last.Endpoints) > 0 ||
		sharesAddress(r.Lease, c.wish) || !slices.ContainsFunc(r.Endpoints, func(e subnet.Endpoint) bool { return e.PublicIP.IsValid() })
}

// rank orders the leases that are the host's own: the higher the better.
func (c *claimer) rank(r *subnet.Record) int {
	switch {
	case r.LeaseID == 0:
		return 4
	case r.HostID == c.wish.HostID && r.Key() == keyOf(c.past.subnets):
		return 3
	case r.HostID == c.wish.HostID:
		return 2
	}
	return 1
}

// reserved is the key of a reservation for the host other than its lease; empty: there is none.
func (c *claimer) reserved(f facts) string {
	if own := f.mine[c.key]; own == nil || own.LeaseID == 0 {
		return ""
	}
	for key, r := range f.mine {
		if r.LeaseID == 0 && f.network.Fits(r.Subnets()) {
			return key
		}
	}
	return ""
}

// giveBack deletes a lease of the host's own beside the one that it holds, once no container has an address of it. The
// host has such leases after it moved to another subnet, or after a restore of etcd brought back an older one.
func (c *claimer) giveBack(f facts, d *decision) {
	for _, key := range slices.Sorted(maps.Keys(f.mine)) {
		r := f.mine[key]
		if key == c.key || r.HostID != c.wish.HostID || r.LeaseID == 0 {
			continue
		}
		if d.leaves = append(slices.Clip(d.leaves), r.Subnets()...); f.vacant(r.Subnets()...) {
			d.write = &write{key: key, modRevision: r.ModRevision}
		}
	}
}

// fitting are those of some subnets that the network would lease today.
func fitting(n subnet.Network, subnets []netip.Prefix) (fit []netip.Prefix) {
	for _, p := range subnets {
		if pool, ok := n.Pool(subnet.FamilyOf(p.Addr())); ok && (subnet.Network{Pools: []subnet.Pool{pool}}).Fits([]netip.Prefix{p}) {
			fit = append(fit, p)
		}
	}
	return fit
}

// restrict is the network without the families in which the host says no address, unless it says none at all.
func restrict(n subnet.Network, wish subnet.Lease) subnet.Network {
	if len(wish.Endpoints) == 0 {
		return n
	}
	pools := slices.DeleteFunc(slices.Clone(n.Pools), func(p subnet.Pool) bool {
		return !slices.ContainsFunc(wish.Endpoints, func(e subnet.Endpoint) bool {
			a := addressOf(e)
			return a.IsValid() && a.Is4() == p.Min.Is4()
		})
	})
	if len(pools) > 0 {
		n.Pools = pools
	}
	return n
}

// addressOf is an address of the endpoint's family.
func addressOf(e subnet.Endpoint) netip.Addr {
	if e.PublicIP.IsValid() {
		return e.PublicIP
	}
	return e.Subnet.Addr()
}

func keyOf(subnets []netip.Prefix) string {
	l := subnet.Lease{Endpoints: make([]subnet.Endpoint, len(subnets))}
	for i, p := range subnets {
		l.Endpoints[i].Subnet = p
	}
	return l.Key()
}
