package etcdstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// NetworkDir is where, below <prefix>/overlayd/, each named network has a key, so that hosts that join all networks follow those
// keys and not what stands in the networks. It is put, at the revision of the network's config, with each change of that.
const NetworkDir = "networks/"

// NamedNetwork is one of the networks below a prefix.
type NamedNetwork struct {
	Name        string // empty: the one that has none
	Config      []byte // as it stands in etcd, valid or not
	Created     int64  // etcd's revision
	ModRevision int64  // of Config
	// Followed says that hosts that join all networks know of it. One whose config somebody put by hand is not.
	Followed bool
}

// Networks are the networks below a prefix at one revision, by name.
type Networks struct {
	All      []NamedNetwork
	revision int64
}

// Find returns the network of a name; its ModRevision is 0 if there is none.
func (n Networks) Find(name string) NamedNetwork {
	i, ok := slices.BinarySearchFunc(n.All, name, func(n NamedNetwork, name string) int { return strings.Compare(n.Name, name) })
	if !ok {
		return NamedNetwork{Name: name}
	}
	return n.All[i]
}

// Named is the network of a name below this one's prefix; "" is this one.
func (s *Store) Named(name string) (*Store, error) {
	if name == "" {
		return s, nil
	}
	if err := subnet.ValidNetworkName(name); err != nil {
		return nil, err
	}
	return &Store{client: s.client, prefix: s.prefix + "/" + name, name: name, log: s.log.With("network", name)}, nil
}

// configOf is the key of a network's config.
func (s *Store) configOf(name string) string {
	if name == "" {
		return s.configKey()
	}
	return s.prefix + "/" + name + "/config"
}

func (s *Store) followedKey(name string) string { return s.prefix + "/overlayd/" + NetworkDir + name }

// Networks lists the networks below the prefix: the unnamed one and those that have a name, also those that somebody made by hand
// in flannel's layout. It reads one key of each, whatever else stands in it, and takes two requests for each.
func (s *Store) Networks(ctx context.Context) (found Networks, err error) {
	client, err := s.client.connection(ctx)
	if err != nil {
		return found, err
	}
	get := func(key string, more ...clientv3.OpOption) (*clientv3.GetResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, pageTimeout)
		defer cancel()
		got, err := client.Get(ctx, key, append(more, clientv3.WithRev(found.revision))...)
		if err != nil {
			return nil, describe(err, client.Endpoints()...)
		}
		found.revision = cmp.Or(found.revision, got.Header.Revision)
		return got, nil
	}
	add := func(name string) error {
		got, err := get(s.configOf(name))
		for i := 0; err == nil && i < len(got.Kvs); i++ {
			kv := got.Kvs[i]
			found.All = append(found.All, NamedNetwork{name, kv.Value, kv.CreateRevision, kv.ModRevision, name == ""})
		}
		return err
	}
	if err := add(""); err != nil {
		return Networks{}, err
	}
	// Nobody but an operator may read all that is below overlayd/.
	for _, r := range [][2]string{{s.prefix + "/", s.prefix + "/overlayd/"}, {s.prefix + "/overlayd0", s.prefix + "0"}} {
		for from, end := r[0], r[1]; ; {
			got, err := get(from, clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly())
			if err != nil {
				return Networks{}, err
			}
			if len(got.Kvs) == 0 {
				break
			}
			name, _, below := strings.Cut(strings.TrimPrefix(string(got.Kvs[0].Key), s.prefix+"/"), "/")
			from = string(got.Kvs[0].Key) + "\x00"
			if below {
				from = s.prefix + "/" + name + "0" // '0' comes after '/'
			}
			if below && subnet.ValidNetworkName(name) == nil {
				if err := add(name); err != nil {
					return Networks{}, err
				}
			}
		}
	}
	got, err := get(s.followedKey(""), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return Networks{}, err
	}
	for _, kv := range got.Kvs {
		name := strings.TrimPrefix(string(kv.Key), s.followedKey(""))
		for i := range found.All {
			found.All[i].Followed = found.All[i].Followed || found.All[i].Name == name
		}
	}
	slices.SortFunc(found.All, func(a, b NamedNetwork) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// CountLeases says how many keys of leases there are: those that hosts hold, and others, good or bad.
func (s *Store) CountLeases(ctx context.Context) (n int64, err error) {
	err = s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		got, err := c.Get(ctx, s.leasePrefix(), clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		n = got.Count
		return nil
	})
	return n, err
}

// same is what is compared before a network is written: that nobody has made or changed one since held was read.
func (s *Store) same(held Networks) []clientv3.Cmp {
	return []clientv3.Cmp{
		untouched(s.followedKey(""), held.revision),
		unchanged(s.configKey(), held.Find("").ModRevision),
	}
}

// untouched compares that no key that begins with a prefix was put after a revision.
func untouched(prefix string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(prefix), "<", revision+1).WithPrefix()
}

// PutNetwork writes the config of a network, which is made if held has none of its name: then nothing is in it that one of that name
// left. If a network was made or changed since held was read, the error wraps [ErrConflict], and it is for the caller to read again.
func (s *Store) PutNetwork(ctx context.Context, held Networks, name string, raw []byte) error {
	if _, err := subnet.ParseNetwork(raw); err != nil {
		return err
	}
	before := held.Find(name)
	same, ops := s.same(held), []clientv3.Op{clientv3.OpPut(s.configOf(name), string(raw))}
	if name != "" {
		if err := subnet.ValidNetworkName(name); err != nil {
			return err
		}
		same = append(same, unchanged(s.configOf(name), before.ModRevision))
		ops = append(ops, clientv3.OpPut(s.followedKey(name), "{}"))
		if before.ModRevision == 0 {
			for _, dir := range []string{"/subnets/", "/overlayd/"} {
				ops = append(ops, clientv3.OpDelete(s.prefix+"/"+name+dir, clientv3.WithPrefix()))
			}
		}
	}
	return s.commit(ctx, s.configOf(name), same, ops...)
}

// DeleteNetwork deletes a named network with all that stands in it, and its peerings. If its config has changed since held was read
// or, without force, somebody has claimed or changed a lease in it, the error wraps [ErrConflict].
func (s *Store) DeleteNetwork(ctx context.Context, held Networks, name string, force bool) error {
	if err := subnet.ValidNetworkName(name); err != nil {
		return err
	}
	peerings, err := s.Peerings(ctx)
	if err != nil {
		return err
	}
	dir := s.prefix + "/" + name + "/"
	same := []clientv3.Cmp{unchanged(dir+"config", held.Find(name).ModRevision)}
	if !force {
		same = append(same, untouched(dir+"subnets/", held.revision))
	}
	ops := []clientv3.Op{clientv3.OpDelete(s.followedKey(name)), clientv3.OpDelete(dir, clientv3.WithPrefix())}
	for _, p := range peerings {
		if p.Has(name) {
			ops = append(ops, clientv3.OpDelete(s.peeredKey(p)))
		}
	}
	if len(ops) > maxTxnOps {
		return fmt.Errorf("network %s has %d peerings, too many to end at once: unpeer some first", name, len(ops)-2)
	}
	return s.commit(ctx, dir+"config", same, ops...)
}
