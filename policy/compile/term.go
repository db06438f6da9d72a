package compile

import (
	"cmp"
	"encoding/json"
	"slices"
	"sort"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

// term is a selector of endpoints, as policies have it for those that they isolate and for peers. There is one of each.
type term struct {
	key     string
	in      string   // the namespace, if spaces is nil
	spaces  selector // of namespaces
	labels  selector
	refs    int               // of policies
	peers   int               // of policies, as peers that others must hear of
	names   map[allowance]int // of policies, as whoever has a port of a name; only of the term that selects everything for that
	targets []*compiled       // policies that isolate what it selects
	uses    map[*group][]allowance
	classes map[*class]bool // that have it in their terms; nil: no group uses it
	buckets []bucket        // where it is in the index
}

// selects says whether a term means endpoints of a namespace with some labels.
func (t *term) selects(ns *namespace, labels []label) bool {
	if t.spaces == nil {
		return t.in == ns.name && t.labels.match(labels)
	}
	return t.labels.match(labels) && t.spaces.match(ns.labels)
}

// selector is one of the API's, all of it as expressions, which are sorted.
type selector []policy.Requirement

// selectorOf never returns nil.
func selectorOf(s *policy.Selector) selector {
	all := make(selector, 0, len(s.MatchLabels)+len(s.MatchExpressions))
	for key, value := range s.MatchLabels {
		all = append(all, policy.Requirement{Key: key, Operator: policy.In, Values: []string{value}})
	}
	for _, r := range s.MatchExpressions {
		r.Values = slices.Sorted(slices.Values(r.Values))
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b policy.Requirement) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Operator, b.Operator), slices.Compare(a.Values, b.Values))
	})
	return all
}

// match says whether a selector selects labels, which are sorted.
func (s selector) match(labels []label) bool {
	for i := range s {
		if !fulfils(labels, &s[i]) {
			return false
		}
	}
	return true
}

func fulfils(labels []label, r *policy.Requirement) bool {
	value, ok := find(labels, r.Key)
	switch r.Operator {
	case policy.In:
		return ok && slices.Contains(r.Values, value)
	case policy.NotIn:
		return !ok || !slices.Contains(r.Values, value)
	case policy.Exists:
		return ok
	case policy.DoesNotExist:
		return !ok
	}
	return false
}

func find(labels []label, key string) (value string, ok bool) {
	i := sort.Search(len(labels), func(i int) bool { return labels[i].key >= key })
	if i == len(labels) || labels[i].key != key {
		return "", false
	}
	return labels[i].value, true
}

// anyone is the key of the term that selects everything, for rules that let whoever has a port of a name be reached at it. Not
// that of an empty selector of namespaces: its endpoints need not be known by others as long as they have no such port.
const anyone = "*"

// peer returns the term of a peer that is no block. spaces nil: those of the namespace.
func (c *Compiler) peer(namespace string, spaces, labels *policy.Selector) *term {
	t := term{labels: selector{}}
	if spaces == nil {
		t.in = namespace
	} else {
		t.spaces = selectorOf(spaces)
	}
	if labels != nil {
		t.labels = selectorOf(labels)
	}
	key, _ := json.Marshal([]any{t.in, t.spaces, t.labels}) // Cannot fail: strings only.
	return c.intern(string(key), t)
}

// intern returns the term that has the key, which is new as t says if there is none.
func (c *Compiler) intern(key string, t term) *term {
	old := c.terms[key]
	if old != nil {
		return old
	}
	t.key = key
	c.terms[key] = &t
	t.buckets = c.index.put(&t)
	return &t
}

// index finds the terms that can mean an endpoint by what they demand: one of its labels, in a namespace or in any.
type index map[bucket][]*term

type bucket struct {
	namespace string // empty: any
	label     string // as appendLabel encodes it; empty: none is demanded
}

// put adds a term where fewest are, and says where.
func (x index) put(t *term) []bucket {
	best := []bucket{{t.in, ""}}
	fewest := -1
	for _, labels := range t.labels.demands() {
		most := 0
		buckets := make([]bucket, 0, len(labels))
		for _, l := range labels {
			b := bucket{t.in, l}
			buckets = append(buckets, b)
			most = max(most, len(x[b]))
		}
		if fewest < 0 || most < fewest {
			best, fewest = buckets, most
		}
	}
	for _, b := range best {
		x[b] = append(x[b], t)
	}
	return best
}

// demands are sets of labels: who has not one of each is not selected.
func (s selector) demands() [][]string {
	var sets [][]string
	for _, r := range s {
		if r.Operator != policy.In {
			continue
		}
		var set []string
		for _, value := range slices.Compact(slices.Clone(r.Values)) {
			set = append(set, string(appendLabel(nil, r.Key, value)))
		}
		sets = append(sets, set)
	}
	return sets
}

func (x index) remove(t *term) {
	for _, b := range t.buckets {
		if rest := slices.DeleteFunc(x[b], func(o *term) bool { return o == t }); len(rest) > 0 {
			x[b] = rest
		} else {
			delete(x, b)
		}
	}
}

// visit calls f with each term that means endpoints of a namespace with some labels.
func (x index) visit(ns *namespace, labels []label, f func(*term)) {
	visit := func(b bucket) {
		for _, t := range x[b] {
			if t.selects(ns, labels) {
				f(t)
			}
		}
	}
	for _, in := range []string{ns.name, ""} {
		visit(bucket{in, ""})
		for i := range labels {
			visit(bucket{in, labels[i].encoded})
		}
	}
}

func (t *term) active() bool { return t.classes != nil }

// attach lets a class have a term in use that means it; what its addresses add to groups is not said.
func attach(cl *class, t *term) {
	if !t.classes[cl] {
		t.classes[cl] = true
		cl.terms = append(cl.terms, t)
	}
}

func detach(cl *class, t *term) {
	delete(t.classes, cl)
	cl.terms = slices.DeleteFunc(cl.terms, func(o *term) bool { return o == t })
}

// compareTerms orders terms, for what is to be the same each time.
func compareTerms(a, b *term) int { return strings.Compare(a.key, b.key) }
