package etcdstore

import (
	"bytes"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/overlayd/overlayd/subnet"
)

// config is the network config in force.
type config struct {
	raw         []byte
	network     *subnet.Network
	modRevision int64            // of the key in etcd, of whatever value; 0: there is none
	err         error            // why the value in etcd is not the one in force
	refused     *mvccpb.KeyValue // that value, if it could be one day
}

// configure takes in a new network config.
func (m *Member) configure(kv *mvccpb.KeyValue, gone bool, changed map[string]bool) error {
	if gone {
		kv = nil
	}
	before := m.config.network
	m.readConfig(kv)
	switch {
	case m.config.network == before:
	case m.set == nil:
		return m.stale(fmt.Errorf("%w: it has a network config now", errStale))
	default:
		for _, key := range m.set.SetNetwork(*m.config.network) {
			changed[key] = true
		}
	}
	return nil
}

// readConfig puts a network config in force if it is one. If it is none, or there is none (nil), or leases in use would
// be outside, the old one stays: hosts must not lose their network by a slip of the pen.
func (m *Member) readConfig(kv *mvccpb.KeyValue) {
	m.stuck, m.config.refused = false, nil
	if kv == nil {
		m.config.modRevision, m.config.err = 0, m.store.noNetwork()
		return
	}
	m.config.modRevision = kv.ModRevision
	network, err := subnet.ParseNetwork(kv.Value)
	if err == nil {
		if err = m.strands(network); err != nil {
			m.config.refused = kv
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", m.store.configKey(), err)
		if errText(m.config.err) != err.Error() {
			m.metrics.failed(kindConfig)
			m.log.Warn("the network config cannot be followed", "err", err)
		}
		m.config.err = err
		return
	}
	m.config.err = nil
	if m.config.network == nil || !bytes.Equal(kv.Value, m.config.raw) {
		m.config.raw, m.config.network = kv.Value, &network
		m.log.Info("network config is in force", "network", network.String(), "backend", network.Backend.Type)
	}
}

// strands returns an error that names a lease in use which next has no place for; nil if there is none.
func (m *Member) strands(next subnet.Network) error {
	if m.config.network == nil || m.set == nil {
		return nil
	}
	var lost *subnet.Record
	if own := m.own.lastHeld; m.own.had && (len(own.Endpoints) != len(next.Pools) || m.outside(next, own.Lease)) {
		lost = &own
	}
	for _, r := range m.set.All() {
		if used := r.Backend != "" || r.LeaseID != 0; lost == nil && used && m.outside(next, r.Lease) {
			lost = r
		}
	}
	if lost == nil {
		return nil
	}
	return fmt.Errorf("the network %s has no place for subnet %s of %s: it is followed when no such lease is left, or after a restart of overlayd",
		next, lost.Key(), nameOf(lost.Lease))
}

// outside says whether a lease that is in the network in force has a subnet that no lease of next may have.
func (m *Member) outside(next subnet.Network, l subnet.Lease) bool {
	for _, p := range l.Subnets() {
		if m.config.network.Contains(p) && next.Admit(p) != nil {
			return true
		}
	}
	return false
}
