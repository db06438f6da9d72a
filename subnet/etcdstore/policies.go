package etcdstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/policy"
)

// Keys of policies and endpoints, below <prefix>/overlayd/.
const (
	PolicyKeys       = "policy" // what the next three begin with
	PolicyDir        = "policy/"
	PolicyIndexKey   = "policy-index"
	PolicyDefaultKey = "policy-default"
	NamespaceDir     = "namespaces/"
	EndpointDir      = "endpoints/"
)

const (
	maxTxnOps  = 128 - 1 // etcd's default, and one is the index's
	maxTxnSize = 1 << 20 // bytes of values; etcd takes 1.5 MiB
)

// PolicyKey is the key of a policy, by namespace/name, below overlayd/.
func PolicyKey(name string) string { return PolicyDir + name }

// NamespaceKey is the key of a namespace, below overlayd/.
func NamespaceKey(name string) string { return NamespaceDir + name }

// Policies are all that etcd holds of policies at one revision.
type Policies struct {
	Policies   map[string]policy.Policy // by namespace/name
	Namespaces map[string]policy.Namespace
	Default    policy.Default   // of the network; empty: none is set
	Unreadable map[string]error // what of these cannot be read, by key below overlayd/: hosts take each for a deny

	held      map[string]*mvccpb.KeyValue // by key below overlayd/
	index     policy.Index
	indexed   bool // there is an index
	indexedAt int64
}

// Policies reads all policies and namespaces, and the network's default.
func (s *Store) Policies(ctx context.Context) (*Policies, error) {
	p := &Policies{
		Policies: map[string]policy.Policy{}, Namespaces: map[string]policy.Namespace{}, Unreadable: map[string]error{},
		held: map[string]*mvccpb.KeyValue{},
	}
	client, err := s.client.connection(ctx)
	if err != nil {
		return nil, err
	}
	base, revision := s.prefix+"/overlayd/", int64(0)
	for _, keys := range []string{PolicyKeys, NamespaceDir} {
		err := readRange(ctx, client, keyRange{base + keys, true}, revision, func(header *etcdserverpb.ResponseHeader, kvs []*mvccpb.KeyValue) {
			revision = cmp.Or(revision, header.Revision)
			for _, kv := range kvs {
				p.take(strings.TrimPrefix(string(kv.Key), base), kv)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *Policies) take(key string, kv *mvccpb.KeyValue) {
	var err error
	p.held[key] = kv
	if name, ok := strings.CutPrefix(key, PolicyDir); ok {
		if p.Policies[name], err = policy.ParsePolicy(name, kv.Value); err != nil {
			delete(p.Policies, name)
		}
	} else if name, ok := strings.CutPrefix(key, NamespaceDir); ok {
		if p.Namespaces[name], err = policy.ParseNamespace(name, kv.Value); err != nil {
			p.Namespaces[name] = policy.Namespace{Name: name, Default: policy.Deny}
		}
	} else if key == PolicyDefaultKey {
		p.Default, err = policy.ParseDefault(kv.Value)
	} else if key == PolicyIndexKey {
		p.indexedAt = kv.ModRevision
		err = json.Unmarshal(kv.Value, &p.index)
		p.indexed = err == nil
	}
	if err != nil {
		p.Unreadable[key] = err
	}
}

// count is how many policies etcd holds, those that cannot be read too.
func (p *Policies) count() (n int) {
	for key := range p.held {
		if strings.HasPrefix(key, PolicyDir) {
			n++
		}
	}
	return n
}

// Lost says how many policies there should be, and how many there are, if those differ: some went away without a word, and hosts
// that knew them keep them. ConfirmPolicies accepts what is there.
func (p *Policies) Lost() (should, are int, differ bool) {
	are = p.count()
	return p.index.Policies, are, p.indexed && p.index.Policies != are
}

// InForce are the policies as hosts have them, by key: one that cannot be read isolates its namespace, and allows nothing.
func (p *Policies) InForce() (all []policy.Policy) {
	for key := range p.held {
		name, ok := strings.CutPrefix(key, PolicyDir)
		if !ok {
			continue
		}
		one, readable := p.Policies[name]
		if !readable {
			one = policy.Closed(name)
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b policy.Policy) int { return strings.Compare(a.Key(), b.Key()) })
	return all
}

// PolicyChange is what is to be written, all of it or, if there is too much for one transaction of etcd's, part by part.
type PolicyChange struct {
	Put        []policy.Policy
	Delete     []string // by namespace/name; that there is none is no error
	Namespaces []policy.Namespace
	Default    policy.Default // empty: as it is
}

// change is one key's.
type change struct {
	key   string // below overlayd/
	value []byte // nil: deleted
}

// WritePolicies writes c if nothing of etcd's has changed since p was read; otherwise the error wraps [ErrConflict], and it is for
// the caller to read again. What is as it should be already is not written.
func (s *Store) WritePolicies(ctx context.Context, p *Policies, c PolicyChange) error {
	changes, err := c.changes()
	if err != nil {
		return err
	}
	changes = slices.DeleteFunc(changes, func(c change) bool {
		have := p.held[c.key]
		return have == nil && c.value == nil || have != nil && c.value != nil && string(have.Value) == string(c.value)
	})
	for written := 0; len(changes) > 0; {
		n, size := 0, 0
		for n < min(len(changes), maxTxnOps) && (n == 0 || size+len(changes[n].value) <= maxTxnSize) {
			size += len(changes[n].value)
			n++
		}
		if err := s.writePolicies(ctx, p, changes[:n]); err != nil {
			if written > 0 {
				err = fmt.Errorf("%d of %d were written: %w", written, written+len(changes), err)
			}
			return err
		}
		written += n
		changes = changes[n:]
	}
	return nil
}

// ConfirmPolicies says that what etcd holds is what is meant: hosts that keep policies which it lost drop them.
func (s *Store) ConfirmPolicies(ctx context.Context, p *Policies) error {
	return s.writePolicies(ctx, p, nil)
}

func (c PolicyChange) changes() (all []change, err error) {
	put := func(key string, value any) {
		data, bad := json.Marshal(value)
		if err == nil && bad != nil {
			err = bad
		}
		if err == nil && len(data) > policy.MaxValue {
			err = fmt.Errorf("%s is %d bytes long: etcd takes no more than %d", key, len(data), policy.MaxValue)
		}
		all = append(all, change{key, data})
	}
	for _, n := range c.Namespaces { // before the policies that select them
		put(NamespaceDir+n.Name, n)
	}
	for _, p := range c.Put {
		put(PolicyDir+p.Key(), p)
	}
	if c.Default != "" {
		put(PolicyDefaultKey, policy.NetworkDefault{Default: c.Default})
	}
	for _, name := range c.Delete {
		all = append(all, change{PolicyDir + name, nil})
	}
	return all, err
}

// writePolicies writes some changes and the index that fits them, and p says what there is then. An index that did not fit
// before does not fit after either: hosts would take what was lost for what was deleted. No changes confirm what there is.
func (s *Store) writePolicies(ctx context.Context, p *Policies, changes []change) error {
	base := s.prefix + "/overlayd/"
	next := p.index.Next(time.Now(), p.index.Policies)
	if !p.indexed || len(changes) == 0 {
		next.Policies = p.count()
	}
	if len(changes) == 0 {
		next.Confirmed = next.At
	}
	same := []clientv3.Cmp{unchanged(base+PolicyIndexKey, p.indexedAt)}
	var ops []clientv3.Op
	after := maps.Clone(p.held)
	for _, c := range changes {
		revision := int64(0)
		have := p.held[c.key]
		if have != nil {
			revision = have.ModRevision
		}
		same = append(same, unchanged(base+c.key, revision))
		if c.value == nil {
			ops = append(ops, clientv3.OpDelete(base+c.key))
			delete(after, c.key)
		} else {
			ops = append(ops, clientv3.OpPut(base+c.key, string(c.value)))
			after[c.key] = &mvccpb.KeyValue{Value: c.value}
		}
		if strings.HasPrefix(c.key, PolicyDir) {
			next.Policies += exists(c.value != nil) - exists(have != nil)
		}
	}
	index, err := json.Marshal(next)
	if err != nil {
		return err
	}
	ops = append(ops, clientv3.OpPut(base+PolicyIndexKey, string(index)))
	return s.request(ctx, func(ctx context.Context, c *clientv3.Client) error {
		done, err := c.Txn(ctx).If(same...).Then(ops...).Commit()
		if errors.Is(err, rpctypes.ErrPermissionDenied) { // of an etcd with roles; overlayd's own says more
			return fmt.Errorf("%w: only an operator may change policies, by a role as overlayctl network roles prints it", describe(err, c.Endpoints()...))
		}
		if err != nil {
			return describe(err, c.Endpoints()...)
		}
		if !done.Succeeded {
			return fmt.Errorf("policies: %w", ErrConflict)
		}
		for _, c := range changes {
			if kv := after[c.key]; kv != nil {
				kv.ModRevision = done.Header.Revision
			}
		}
		p.held, p.index, p.indexed, p.indexedAt = after, next, true, done.Header.Revision
		return nil
	})
}

func exists(is bool) int {
	if is {
		return 1
	}
	return 0
}
