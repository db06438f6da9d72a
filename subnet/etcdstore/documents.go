package etcdstore

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Document is a value of ours below the prefix, at overlayd/<kind>/<name>, that hosts do not follow.
type Document struct {
	Name     string
	Value    []byte
	Revision int64 // of the last change; 0: there is none yet
}

func (s *Store) documentKey(kind, name string) string {
	return s.prefix + "/overlayd/" + kind + "/" + name
}

// Documents returns all of a kind by name.
func (s *Store) Documents(ctx context.Context, kind string) (all []Document, err error) {
	dir := s.documentKey(kind, "")
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, dir, clientv3.WithPrefix()) // sorted by key
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		for _, kv := range got.Kvs {
			all = append(all, Document{strings.TrimPrefix(string(kv.Key), dir), kv.Value, kv.ModRevision})
		}
		return nil
	})
	return all, err
}

// Document returns one. If there is none, its Revision is 0.
func (s *Store) Document(ctx context.Context, kind, name string) (d Document, err error) {
	d.Name = name
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, s.documentKey(kind, name))
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		if len(got.Kvs) > 0 {
			d.Value, d.Revision = got.Kvs[0].Value, got.Kvs[0].ModRevision
		}
		return nil
	})
	return d, err
}

// PutDocument writes d if its revision still is d.Revision; otherwise the error wraps [ErrConflict]. A new one goes away by
// itself after life, if that is not 0; one that is changed, when it would have anyway.
func (s *Store) PutDocument(ctx context.Context, kind string, d Document, life time.Duration) error {
	key := s.documentKey(kind, d.Name)
	var options []clientv3.OpOption
	switch {
	case d.Revision != 0:
		options = append(options, clientv3.WithIgnoreLease())
	case life > 0:
		err := s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
			lease, err := c.Grant(ctx, int64(math.Ceil(life.Seconds())))
			if err != nil {
				return describe(err, c.Endpoints()...)
			}
			options = append(options, clientv3.WithLease(lease.ID))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return s.commit(ctx, key, []clientv3.Cmp{unchanged(key, d.Revision)}, clientv3.OpPut(key, string(d.Value), options...))
}

// DeleteDocument deletes one; that there is none is no error.
func (s *Store) DeleteDocument(ctx context.Context, kind, name string) error {
	key := s.documentKey(kind, name)
	if err := s.commit(ctx, key, nil, clientv3.OpDelete(key)); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}
