package leasecache

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// View is the network as this host last saw it.
type View struct {
	Config   []byte           // the network config as etcd had it; empty: none
	Cluster  uint64           // etcd's id of itself; 0: unknown
	Seeds    []string         // the endpoints of etcd that were configured
	Members  []string         // those that they led to
	Own      *subnet.Record   // the host's own lease if it counts; nil: see Reason
	Expires  time.Time        // when Own ends, by the wall clock; zero: it does not expire
	Reason   string           // why no lease counts, for an operator; empty if one does
	Last     *subnet.Record   // the lease that the host had last, whether it counts or not; nil: none
	Peers    []*subnet.Record // in no order
	NIC      string           // MAC of the underlay's link when Last was held; empty: unknown
	SameBoot bool             // Last was held since the host was booted, and by no other host of the same kernel
}

// known is what a host knows of itself and the network, but for its peers.
type known struct {
	Host    string   // HostID
	Network string   `json:",omitempty"` // its config
	Cluster uint64   `json:",omitempty"` // etcd's id of itself
	Seeds   []string `json:",omitempty"` // the endpoints of etcd that were configured
	Members []string `json:",omitempty"` // those that they led to
	Own     *own     `json:",omitempty"`
}

// own is the host's own lease and what was noted with it.
type own struct {
	Record subnet.Record
	Boot   string        // of the host when it held the lease
	NIC    string        // MAC of the link to the underlay
	Lost   string        // what became of it; empty: it is held
	Seen   Moment        // when it was looked at last
	Left   time.Duration // that it is good for, from Seen on
}

// Read returns what the identity hostID remembers in the state directory dir, and changes nothing. What cannot be
// read is not remembered; Reason says so.
func Read(dir, hostID string, now Moment) View {
	c := Cache{path: filepath.Join(dir, Name)}
	return c.recall(hostID, now)
}

// HostID is the identity whose memory there is in the state directory dir; empty if none can be read.
func HostID(dir string) string {
	c := Cache{path: filepath.Join(dir, Name)}
	_ = c.load() // what was read of a damaged one is good
	return c.Host
}

// recall reads the file and judges what it says. Of another identity, nothing counts.
func (c *Cache) recall(hostID string, now Moment) View {
	v := View{Reason: "no lease is remembered"}
	if err := c.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.Reason = "the remembered leases cannot be read: " + err.Error()
		if c.Own != nil {
			c.Own.Lost = "does not count: " + v.Reason // what is not read may say so
		}
	}
	if c.Host != "" && c.Host != hostID {
		what := "leases are"
		if c.Own != nil {
			what = "lease of " + c.Own.name() + " is"
		}
		v.Reason = "the remembered " + what + " another host's: the state directory was copied, or its identity was replaced"
		c.known = known{}
		clear(c.peers)
		return v
	}
	v.Seeds, v.Members = c.Seeds, c.Members
	v.Config, v.Cluster, v.Peers = []byte(c.Network), c.Cluster, slices.Collect(maps.Values(c.peers))
	if c.Own == nil {
		return v
	}
	v.Last, v.NIC, v.SameBoot = &c.Own.Record, c.Own.NIC, now.Boot != "" && c.Own.Boot == now.host()
	if why := c.Own.advance(now); why != "" {
		v.Reason = "the remembered lease of " + c.Own.name() + " " + why
		return v
	}
	v.Own, v.Reason = v.Last, ""
	if v.Own.LeaseID != 0 {
		v.Expires = now.Wall.Add(c.Own.Left)
	}
	return v
}

func (o *own) name() string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(o.Record.Subnets()), "[]"), " ", " and ")
}

// advance notes how much of the lease is left, so that the time that has passed is known whatever becomes of the
// clocks. It returns why the lease does not count; empty if it does. One that has ended never counts again.
func (o *own) advance(now Moment) (why string) {
	if o.Lost != "" || o.Record.LeaseID == 0 {
		return o.Lost
	}
	passed, unknown := now.since(o.Seen)
	if unknown != "" {
		return unknown
	}
	if o.Seen, o.Left = now, o.Left-passed; o.Left <= 0 {
		o.Lost = "ended at " + now.Wall.Add(o.Left).UTC().Format(time.RFC3339)
	}
	return o.Lost
}
