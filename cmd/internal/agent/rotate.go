package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
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

// RotateWireGuard gives the host another wireguard key in the agent's network, when it is its turn, and returns the public one once etcd has it. The links
// go on receiving by what was agreed on under the former; peers that hear of the new one agree on a new session at once. Where peers
// could not hear of it, nothing is changed.
func (a *Agent) RotateWireGuard(ctx context.Context, network string) (publicKey string, err error) {
	if network != a.cfg.Network {
		return "", fmt.Errorf("this host is in no network %s", network)
	}
	asked, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := a.cfg.AskEtcd(asked); err != nil {
		return "", fmt.Errorf("etcd does not answer, so other hosts could not be told: nothing was changed: %w", err)
	}
	if err := a.order(ctx, a.takeTurn); err != nil {
		return "", err
	}
	if !until(ctx, turnTimeout, a.myTurn) {
		_ = a.order(context.WithoutCancel(ctx), a.leaveTurn) // it never fails
		return "", errors.New("other hosts are changing their keys, or etcd does not take that this one wants to: nothing was changed; try again")
	}
	if err := a.order(ctx, a.rotate); err != nil {
		_ = a.order(context.WithoutCancel(ctx), a.leaveTurn)
		return "", err
	}
	told := until(ctx, toldTimeout, func() (is bool) { publicKey, is = a.told(); return is })
	if !told {
		return "", errors.New("the new key is in use, but etcd has not taken it yet: other hosts hear of it when etcd does")
	}
	return publicKey, nil
}

// order has the loop do something, and returns what came of it.
func (a *Agent) order(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	select {
	case a.orders <- order{do, done}:
		return <-done
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.ended:
		return errors.New("overlayd is about to end")
	}
}

// until waits until something is so, and tells whether it is.
func until(ctx context.Context, within time.Duration, so func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for !so() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
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

// mayRotate says why the host's key cannot be changed now.
func (a *Agent) mayRotate() error {
	switch {
	case !a.programmed || a.network.Backend.Type != backend.WireGuard:
		return errors.New("this host is in no network of wireguard: there is no key to change")
	case a.latest.Remembered, !a.latest.Connected, a.latest.Own.State != etcdstore.Held:
		return errors.New("this host's lease is not at hand in etcd, so other hosts could not be told: nothing was changed")
	case time.Since(a.rotated) < rotateEvery:
		return fmt.Errorf("the key has just changed, and other hosts may not be there yet: once in %s will do", rotateEvery)
	}
	return nil
}

// rotate is done by the loop.
func (a *Agent) rotate() error {
	if err := a.mayRotate(); err != nil {
		return err
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
	a.replace(next) // etcd has it later than the links: a peer that has heard takes nothing from the key of before any more
	return nil
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
