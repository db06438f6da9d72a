package enforcer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// believed is what of policies and namespaces is in force, by key: as etcd says, unless etcd has lost some of it without a word.
type believed struct {
	values  map[string][]byte // in force
	listed  map[string][]byte // what etcd holds, if that is not believed; nil: it is
	changed map[string]bool   // keys of values, since taken
}

func newBelieved() *believed {
	return &believed{values: map[string][]byte{}, changed: map[string]bool{}}
}

// take takes in news. A watched change counts. A list that has lost something counts only if its index says that this is so:
// etcd was wiped, or restored from a backup, else.
func (b *believed) take(n etcdstore.News) {
	if n.Listed {
		all := make(map[string][]byte, len(n.Put))
		for _, kv := range n.Put {
			all[kv.Key] = there(kv.Value)
		}
		if b.listed = all; b.fits(all) {
			b.adopt()
		}
		return
	}
	for _, kv := range n.Put {
		b.hear(kv.Key, there(kv.Value))
	}
	for _, kv := range n.Deleted {
		b.hear(kv.Key, nil)
	}
	if b.listed != nil && b.fits(b.listed) {
		b.adopt()
	}
}

// there is a value that is not nil: an empty one is not one that is gone.
func there(value []byte) []byte { return append([]byte{}, value...) }

// hear takes in a change of etcd's. The index that is known is the one by which all is believed.
func (b *believed) hear(key string, value []byte) {
	if b.listed != nil {
		if b.listed[key] = value; value == nil {
			delete(b.listed, key)
		}
	}
	if key != etcdstore.PolicyIndexKey || b.listed == nil && value != nil {
		b.set(key, value)
	}
}

// adopt believes what etcd holds.
func (b *believed) adopt() {
	for key := range b.values {
		if _, ok := b.listed[key]; !ok {
			b.set(key, nil)
		}
	}
	for key, value := range b.listed {
		b.set(key, value)
	}
	b.listed = nil
}

func (b *believed) set(key string, value []byte) {
	if bytes.Equal(b.values[key], value) && (value == nil) == (b.values[key] == nil) {
		return
	}
	b.changed[key] = true
	if b.values[key] = value; value == nil {
		delete(b.values, key)
	}
}

// fits says whether all that etcd holds may be believed: it came of what is known by changes, and where something is missing
// whoever took it out said so; or it is what is known.
func (b *believed) fits(all map[string][]byte) bool {
	known, says := readIndex(b.values[etcdstore.PolicyIndexKey]), readIndex(all[etcdstore.PolicyIndexKey])
	switch {
	case !b.enforces(), b.same(all):
		return true
	case !says.Follows(known):
		return false
	case !b.lost(all):
		return true
	}
	return all[etcdstore.PolicyIndexKey] != nil && says.Policies == count(all)
}

// same says whether etcd holds what is known, but for the index.
func (b *believed) same(all map[string][]byte) bool {
	for key, value := range all {
		if have, ok := b.values[key]; key != etcdstore.PolicyIndexKey && (!ok || !bytes.Equal(have, value)) {
			return false
		}
	}
	return !b.lost(all)
}

// lost says whether something is missing that is known.
func (b *believed) lost(all map[string][]byte) bool {
	for key := range b.values {
		if _, ok := all[key]; !ok && key != etcdstore.PolicyIndexKey {
			return true
		}
	}
	return false
}

// enforces says whether anything that is in force denies something.
func (b *believed) enforces() bool {
	for key, value := range b.values {
		if strings.HasPrefix(key, etcdstore.PolicyDir) || strings.HasPrefix(key, etcdstore.NamespaceDir) && bytes.Contains(value, []byte(policy.Deny)) {
			return true
		}
	}
	return parseDefault(b.values[etcdstore.PolicyDefaultKey]) == policy.Deny
}

// doubt says why what etcd holds is not believed; empty: it is.
func (b *believed) doubt() string {
	if b.listed == nil {
		return ""
	}
	return fmt.Sprintf("etcd was wiped, or restored from a backup: it holds %d policies where %d are in force, which are kept: put them back "+
		`with "overlayctl policy apply", or accept what etcd holds with "overlayctl policy confirm"`, count(b.listed), count(b.values))
}

func count(values map[string][]byte) (n int) {
	for key := range values {
		if strings.HasPrefix(key, etcdstore.PolicyDir) {
			n++
		}
	}
	return n
}

func readIndex(value []byte) (i policy.Index) {
	_ = json.Unmarshal(value, &i) // one that cannot be read is none
	return i
}

// parseDefault is closed where it cannot be read.
func parseDefault(value []byte) policy.Default {
	if value == nil {
		return policy.Allow
	}
	d, _ := policy.ParseDefault(value)
	return d
}

// taken are the keys that changed since it was last asked.
func (b *believed) taken() map[string]bool {
	changed := b.changed
	b.changed = map[string]bool{}
	return changed
}

// compile gives the compiler what changed, and takes note of what cannot be read.
func (e *Enforcer) compile() {
	changed := e.believed.taken()
	puts, removed := map[string]policy.Policy{}, []string(nil)
	for key := range changed {
		value, ok := e.believed.values[key]
		switch name, isPolicy := strings.CutPrefix(key, etcdstore.PolicyDir); {
		case isPolicy && !ok:
			removed = append(removed, name)
			delete(e.unreadable, name)
		case isPolicy:
			p, err := parse(name, value)
			if delete(e.unreadable, name); err != nil {
				e.unreadable[name] = err.Error()
				e.cfg.Log.Error("policy cannot be read: it isolates its namespace", "policy", name, "err", err)
			}
			puts[name] = p
		case key == etcdstore.PolicyDefaultKey:
			e.compiler.SetDefault(parseDefault(value))
		case strings.HasPrefix(key, etcdstore.NamespaceDir):
			e.setNamespace(strings.TrimPrefix(key, etcdstore.NamespaceDir), value)
		}
	}
	if len(changed) > 0 {
		e.memory.dirty, e.memory.due = true, e.memory.written.Add(restPolicies)
	}
	e.needsChanged = e.needsChanged || len(changed) > 0
	if len(puts)+len(removed) > 0 {
		e.compiler.SetPolicies(puts, removed)
	}
}

// parse reads a policy, or makes one in its place that isolates all of its namespace and allows nothing.
func parse(name string, value []byte) (policy.Policy, error) {
	p, err := policy.ParsePolicy(name, value)
	if err != nil {
		p = policy.Closed(name)
	}
	return p, err
}

// setNamespace takes in what is known of a namespace. What cannot be read is closed.
func (e *Enforcer) setNamespace(name string, value []byte) {
	delete(e.unreadable, "namespace "+name)
	if value == nil {
		e.compiler.SetNamespace(name, nil)
		return
	}
	ns, err := policy.ParseNamespace(name, value)
	if err != nil {
		ns = policy.Namespace{Name: name, Default: policy.Deny}
		e.unreadable["namespace "+name] = err.Error()
		e.cfg.Log.Error("namespace cannot be read: it denies", "namespace", name, "err", err)
	}
	e.compiler.SetNamespace(name, &ns)
}
