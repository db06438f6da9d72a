package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// order is something that the loop is to do between two steps, and who waits for it.
type order struct {
	do   func() error
	done chan<- error
}

const (
	// askTimeout is how long etcd may take to say that it is there.
	askTimeout = 2 * time.Second
	// toldTimeout is how long etcd may take to have a lease that says the new key.
	toldTimeout = 10 * time.Second
	// rotateEvery is how soon a key may follow another: peers have to come after, and who is busy tries every five seconds to agree
	// on a session (REKEY_TIMEOUT of wireguard's paper). Etcd is written to no more than once a second.
	rotateEvery = 10 * time.Second
)

// RotateWireGuard gives the host another wireguard key, and returns the public one once etcd has it. The links go on receiving by
// what was agreed on under the former; peers that hear of the new one agree on a new session at once. Where peers could not hear of
// it, nothing is changed.
func (a *Agent) RotateWireGuard(ctx context.Context) (publicKey string, err error) {
	asked, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := a.cfg.AskEtcd(asked); err != nil {
		return "", fmt.Errorf("etcd does not answer, so other hosts could not be told: nothing was changed: %w", err)
	}
	done := make(chan error, 1)
	select {
	case a.orders <- order{a.rotate, done}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if err := <-done; err != nil {
		return "", err
	}
	told, cancel := context.WithTimeout(ctx, toldTimeout)
	defer cancel()
	for {
		key, is := a.told()
		if is {
			return key, nil
		}
		select {
		case <-told.Done():
			return "", errors.New("the new key is in use, but etcd has not taken it yet: other hosts hear of it when etcd does")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// told is the host's public key, and whether its lease in etcd says it.
func (a *Agent) told() (key string, is bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.planner == nil {
		return "", false
	}
	return a.planner.host.WireGuard.Public().String(), !a.unannounced && a.planner.saidBy(a.latest.Own.Record.Lease)
}

// rotate is done by the loop.
func (a *Agent) rotate() error {
	switch {
	case !a.programmed || a.network.Backend.Type != "wireguard":
		return errors.New("this host is in no network of wireguard: there is no key to change")
	case a.latest.Remembered, !a.latest.Connected, a.latest.Own.State != etcdstore.Held:
		return errors.New("this host's lease is not at hand in etcd, so other hosts could not be told: nothing was changed")
	case time.Since(a.rotated) < rotateEvery:
		return fmt.Errorf("the key has just changed, and other hosts may not be there yet: once in %s will do", rotateEvery)
	}
	host, before := a.planner.host, a.cfg.State.WireGuard
	host.WireGuard, host.Former = kernel.NewSecret(), a.receivesBy()
	next, err := newPlanner(*a.network, host)
	if err == nil {
		err = a.cfg.State.setWireGuard(host.WireGuard)
	}
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	a.cfg.State.spent = before // which flanneld's link has until the kernel has followed
	a.cfg.Log.Info("another wireguard key", "was", before.Public(), "key", host.WireGuard.Public())
	a.rotated = time.Now()
	a.use(next)
	// Until both ends have the key wireguard keeps 128 packets for a peer, so nothing waits for anything: etcd takes longer than the
	// link, and a peer that heard of it before tried in vain is greeted.
	a.unannounced, a.greets = false, true
	a.advertise()
	return nil
}

// rekeyed are the peers, by lease key, that tell of another wireguard key than before.
func (a *Agent) rekeyed(peers map[string]*subnet.Record) (keys []string) {
	for key, peer := range peers {
		before := a.peers[key]
		if before != nil && peer != nil && peer.Backend == backend.WireGuard && before.Backend == peer.Backend &&
			!before.SameData(peer.Lease) {
			keys = append(keys, key)
		}
	}
	return keys
}

// greet shakes hands with those: they cannot, before they are known by the new key, and try again only seconds later.
func (a *Agent) greet(rekeyed []string) {
	var all []kernel.WGPeerID
	for _, key := range rekeyed {
		if !a.programmed || a.errs[key] != nil {
			continue
		}
		_, objs, _ := a.planner.peer(a.own.Lease, a.peers[key].Lease, a.isNear, true)
		for _, o := range objs {
			if p, ok := o.(kernel.WGPeer); ok {
				all = append(all, p.ID())
			}
		}
	}
	if len(all) > 0 {
		a.cfg.Kernel.Greet(all...)
	}
}
