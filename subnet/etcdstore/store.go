// Package etcdstore keeps leases in etcd, in flannel's schema: it claims, keeps, lists and watches them.
package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/subnet"
)

// Sentinels that callers branch on.
var (
	// ErrNoNetwork says that etcd has no network config at the prefix.
	ErrNoNetwork = errors.New("no network config")
	// ErrConflict says that somebody else changed the key since it was read.
	ErrConflict = errors.New("changed by somebody else meanwhile")
	// ErrTaken says that another lease has an address of the subnet.
	ErrTaken = errors.New("subnet is taken")
)

// Store reads and writes one network in etcd.
type Store struct {
	client *Client
	prefix string // below which the network lives, without a trailing slash
	name   string // of the network, for messages; empty: it has none, or is not told
	log    *slog.Logger
}

// Addrs are those of etcd, see [Client.Addrs].
func (s *Store) Addrs() []netip.Addr { return s.client.Addrs() }

func (s *Store) request(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	return s.client.request(ctx, f)
}

// request runs f with the client and a timeout.
func (c *Client) request(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	client, err := c.connection(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pageTimeout) // callers who are in a hurry have a shorter one
	defer cancel()
	err = f(ctx, client)
	if code := status.Code(err); code == codes.Unavailable || code == codes.PermissionDenied {
		_ = c.drop() // the next may find that others answer, or show another certificate
	}
	return err
}

func (s *Store) configKey() string { return s.prefix + "/config" }

func (s *Store) leasePrefix() string { return s.prefix + "/subnets/" }

// noNetwork says which key is missing and how to write it.
func (s *Store) noNetwork() error {
	if s.name != "" {
		return fmt.Errorf(`%w at %s: make one with "overlayctl network create %s 10.244.0.0/16"`, ErrNoNetwork, s.configKey(), s.name)
	}
	return fmt.Errorf(`%w at %s: set one with "overlayctl network set 10.244.0.0/16"`, ErrNoNetwork, s.configKey())
}

// Network returns the network config as it stands in etcd, valid or not, and its revision. The error wraps
// ErrNoNetwork if there is none.
func (s *Store) Network(ctx context.Context) (raw []byte, modRevision int64, err error) {
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, s.configKey())
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		if len(got.Kvs) == 0 {
			return s.noNetwork()
		}
		raw, modRevision = got.Kvs[0].Value, got.Kvs[0].ModRevision
		return nil
	})
	return raw, modRevision, err
}

// SetNetwork writes the network config if its revision still is modRevision; 0: if there is none. Otherwise the error
// wraps ErrConflict.
func (s *Store) SetNetwork(ctx context.Context, raw []byte, modRevision int64) error {
	if _, err := subnet.ParseNetwork(raw); err != nil {
		return err
	}
	key := s.configKey()
	return s.commit(ctx, key, []clientv3.Cmp{unchanged(key, modRevision)}, clientv3.OpPut(key, string(raw)))
}

// commit changes a key, and what belongs to it, if all is the same as it was when that was decided.
func (s *Store) commit(ctx context.Context, key string, same []clientv3.Cmp, ops ...clientv3.Op) error {
	return s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		done, err := c.Txn(ctx).If(same...).Then(ops...).Commit()
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		if !done.Succeeded {
			return fmt.Errorf("%s: %w", key, ErrConflict)
		}
		return nil
	})
}

// unchanged compares the revision of a key; that of an absent key is 0.
func unchanged(key string, modRevision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", modRevision)
}

// Expiry returns when an etcd lease ends unless its host renews it.
func (s *Store) Expiry(ctx context.Context, leaseID int64) (t time.Time, err error) {
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		left, err := c.TimeToLive(ctx, clientv3.LeaseID(leaseID))
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		t = time.Now().Add(time.Duration(max(left.TTL, 0)) * time.Second) // -1: it has ended
		return nil
	})
	return t, err
}

// Unbound reports whether etcd lets its caller do what no host may: read the tokens by which others join.
func (s *Store) Unbound(ctx context.Context) (unbound bool, err error) {
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Get(ctx, s.prefix+"/overlayd/tokens/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if unbound = err == nil; denied(err) {
			return nil
		}
		return describe(err, c.Endpoints()...)
	})
	return unbound, err
}
