package etcdstore

import (
	"bytes"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/subnet"
)

// config is the network config in force.
type config struct {
	raw     []byte
	network *subnet.Network
	err     error            // why the value in etcd is not the one in force
	kv      *mvccpb.KeyValue // in etcd; nil: none
	blocker string           // key of a lease for which kv is not followed; empty: there is none
}

func (c *config) modRevision() int64 {
	if c.kv == nil {
		return 0
	}
	return c.kv.ModRevision
}

// inForce is the network, or one that no lease belongs to.
func (c *config) inForce() subnet.Network {
	if c.network == nil {
		return subnet.Network{}
	}
	return *c.network
}

// configure takes in a network config, and adds the leases to changed that count otherwise now.
func (v *view) configure(kv *mvccpb.KeyValue, own *claimer, changed map[string]bool) {
	before := v.config.network
	v.readConfig(kv, own)
	if v.config.network != before && v.set != nil {
		for _, key := range v.set.SetNetwork(*v.config.network) {
			changed[key] = true
		}
	}
}

// readConfig puts a network config in force if it is one. If it is none, or there is none (nil), or leases in use would
// be outside, the old one stays: hosts must not lose their network by a slip of the pen.
func (v *view) readConfig(kv *mvccpb.KeyValue, own *claimer) {
	c := &v.config
	c.kv, c.blocker = kv, ""
	if kv == nil {
		c.err = v.store.noNetwork()
		return
	}
	network, err := subnet.ParseNetwork(kv.Value)
	if err == nil {
		c.blocker, err = v.strands(network, own)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", v.store.configKey(), err)
		if errText(c.err) != err.Error() {
			v.metrics.failed(kindConfig)
			v.log.Warn("the network config cannot be followed", "err", err)
		}
		c.err = err
		return
	}
	c.err = nil
	if c.network == nil || !bytes.Equal(kv.Value, c.raw) {
		c.raw, c.network = kv.Value, &network
		v.log.Info("network config is in force", "network", network.String(), "backend", network.Backend.Type)
	}
}

// strands returns an error that names a lease in use which next has no place for, and its key; nil if there is none.
func (v *view) strands(next subnet.Network, own *claimer) (key string, err error) {
	if v.config.network == nil || v.set == nil {
		return "", nil
	}
	var lost *subnet.Record
	if own.had && v.outside(next, own.last.Lease) {
		lost = &own.last
	}
	for _, r := range v.set.All() {
		if lost != nil {
			break
		}
		if used := r.Backend != "" || r.LeaseID != 0; used && v.outside(next, r.Lease) {
			lost = r
		}
	}
	if lost == nil {
		return "", nil
	}
	return lost.Key(), fmt.Errorf("the network %s has no place for subnet %s of %s: it is followed when no such lease is left, or after a restart of overlayd",
		next, lost.Key(), lost.Who())
}

// outside says whether a lease that is in the network in force has a subnet that no lease of next may have.
func (v *view) outside(next subnet.Network, l subnet.Lease) bool {
	for _, p := range l.Subnets() {
		if v.config.network.Contains(p) && next.Admit(p) != nil {
			return true
		}
	}
	return false
}
