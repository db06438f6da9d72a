package etcdstore

import (
	"fmt"
	"net/netip"

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
	was   string         // the host's former HostID, which the lease at key has until it is taken back; empty: none
}

// facts are what a decision is made from.
type facts struct {
	network  subnet.Network
	set      *subnet.Set
	mine     map[string]*subnet.Record  // the leases that count and are the host's own
	others   map[string]string          // the keys of those that are another identity's, and name an address of the host
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
		if there, r := c.look(f); there == theirs || there == junk || c.rejection(f) != nil {
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

// leave lets the host choose anew.
func (c *claimer) leave() {
	c.place, c.key, c.fresh, c.kept, c.had, c.wrote, c.was = nil, "", false, nil, false, 0, ""
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
	if c.was != "" && r.HostID == c.was {
		return ours, r
	}
	return ownerOf(r.Lease, c.wish), r
}

// rejection says why the own lease does not count, or would not if it were put.
func (c *claimer) rejection(f facts) error {
	r, junk := f.set.Find(c.key)
	if r != nil && junk == nil {
		if elder, ok := f.set.Elder(c.key); ok && c.fresh {
			return fmt.Errorf("lease %s overlaps %s, which is older", c.key, elder)
		}
		return f.set.Rejection(c.key)
	}
	for key, older := range f.set.Beside(c.key, c.place) {
		other, err := f.set.Find(key)
		_, blocks := f.set.Get(key)
		if junk != nil { // what is put over it would be as old
			blocks = older && err == nil
		}
		if blocks && ownerOf(other.Lease, c.wish) != ours {
			return fmt.Errorf("subnet %s overlaps %s, which belongs to %s now", c.key, key, other.Who())
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
		return decision{state: Taken, reason: fmt.Sprintf("subnet %s belongs to %s now", c.key, r.Who())}
	case there == nobody && !fits && c.had:
		return decision{state: Taken, reason: fmt.Sprintf("the lease of %s is lost, and the network does not lease this subnet any more", c.key)}
	case rejected != nil && there != ours, rejected != nil && there == ours && (fits && c.kept == nil || older || c.kept != nil && beside != ""):
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
	if c.was != "" && r.HostID == c.was && d.reason == "" {
		d.reason = fmt.Sprintf("subnet %s was leased to this host as %s: taking it back", c.key, r.Who())
	}
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

// hold takes note that the lease is the host's.
func (c *claimer) hold(r *subnet.Record) {
	c.had, c.fresh, c.last = true, false, *r
	c.kept, c.was = nil, ""
}

// put has the own key say what the host wants, and be held by the lease that the host renews.
func (c *claimer) put(f facts, there owner, r *subnet.Record) decision {
	d := c.begin(f, there, r)
	w := write{key: c.key, place: c.place, modRevision: r.ModRevision, leaseID: d.keep}
	want := leaseFor(c.wish, c.place)
	if there == ours && !d.open && w.leaseID == r.LeaseID && r.Lease.Equal(want) {
		return d
	}
	w.calm = there == ours && c.had && w.leaseID == r.LeaseID && r.Lease.SameAddresses(want)
	return c.send(d, w, want, f)
}

// begin says which of etcd's leases is to hold the own key.
func (c *claimer) begin(f facts, there owner, r *subnet.Record) decision {
	d := decision{state: Claiming}
	if c.had && (c.moving(f) || c.kept == nil && r.CreateRevision == c.last.CreateRevision) {
		d.state = Held // what is on its way changes the lease, but not whose it is: the key was always there
	}
	switch {
	case there == ours && r.LeaseID == 0: // a reservation stays one
	case there == ours && f.grant.id == 0 && r.HostID != "" && r.LeaseID != f.grant.dead:
		d.keep = r.LeaseID // as an earlier run of ours left it
	default:
		d.keep, d.open = f.grant.id, f.grant.id == 0
	}
	return d
}

// send completes a decision to write.
func (c *claimer) send(d decision, w write, l subnet.Lease, f facts) decision {
	var err error
	if w.value, err = l.Value(); err != nil {
		return decision{state: d.state, reason: err.Error(), keep: d.keep}
	}
	if d.open && f.grant.err != nil {
		d.reason = "etcd refuses to write the lease" + complaint(f.grant.err)
	}
	if !d.open {
		d.write = &w
	}
	return d
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
