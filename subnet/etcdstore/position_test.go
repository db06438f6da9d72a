package etcdstore

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func TestMarkTellsHistories(t *testing.T) {
	t.Parallel()
	at := func(rev int64) []*mvccpb.KeyValue { return []*mvccpb.KeyValue{{Key: []byte("k"), ModRevision: rev}} }
	for name, tc := range map[string]struct {
		mark mark
		kvs  []*mvccpb.KeyValue
		same bool
	}{
		"was not there":       {mark: mark{key: "k", revision: 5}},
		"was older":           {mark: mark{key: "k", revision: 5}, kvs: at(4)},
		"was another":         {mark: mark{key: "k", revision: 5}, kvs: at(7)},
		"was there, not gone": {mark: mark{key: "k", revision: 5, gone: true}, kvs: at(3)},
		"never there":         {mark: mark{key: "k", gone: true}, same: true},
		"of another lease":    {mark: mark{key: "k", revision: 5, lease: 1}, kvs: []*mvccpb.KeyValue{{ModRevision: 5, Lease: 2, Value: []byte("x")}}},
		"without its value":   {mark: mark{key: "k", revision: 5, lease: 1}, kvs: at(5), same: true},
		"as known":            {mark: mark{key: "k", revision: 5}, kvs: at(5), same: true},
	} {
		if err := tc.mark.check(tc.kvs, 9); (err == nil) != tc.same || err != nil && !errors.Is(err, errStale) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPositionChecksHeaders(t *testing.T) {
	t.Parallel()
	p := position{cluster: 7, known: []known{{revision: 5}, {revision: 9}}}
	for name, tc := range map[string]struct {
		cluster  uint64
		revision int64
		same     bool
	}{
		"another cluster": {8, 10, false},
		"behind a range":  {7, 8, false},
		"as far":          {7, 9, true},
	} {
		if err := p.check(&etcdserverpb.ResponseHeader{ClusterId: tc.cluster, Revision: tc.revision}); (err == nil) != tc.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What etcd says of its progress counts when it has said so again: the first may overtake a change (etcd#15220).
func TestProgressCountsWhenRepeated(t *testing.T) {
	t.Parallel()
	p := position{known: []known{{revision: 5}, {revision: 6}}}
	p.progress(0, 20)
	if p.known[0].revision != 5 {
		t.Errorf("at %d after one word", p.known[0].revision)
	}
	p.progress(0, 30)
	if p.known[0].revision != 20 || p.known[1].revision != 6 {
		t.Errorf("at %+v after two", p.known)
	}
	p.resume() // the change that was overtaken is not on its way any more
	p.progress(0, 40)
	if p.known[0].revision != 20 {
		t.Errorf("at %d after one word on another connection", p.known[0].revision)
	}
}

// The last changes are compared, one of each key.
func TestPositionMarksTheLastChanges(t *testing.T) {
	t.Parallel()
	p := position{marks: []mark{{key: "config", gone: true}}}
	see := func(key string, revision int64, gone bool) {
		p.see(1, &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}, gone)
	}
	for i := range int64(3 * maxMarks) {
		see(fmt.Sprint("k", i), 100-2*i, false) // as a list has them, in any order
	}
	see("k1", 101, true)
	see("k0", 102, false)
	see("k0", 103, false)
	if len(p.marks) != maxMarks || p.marks[0].key != fmt.Sprint("k", maxMarks-1) {
		t.Errorf("%d marks from %+v on", len(p.marks), p.marks[0])
	}
	if got := p.marks[maxMarks-2:]; got[0] != (mark{1, "k1", 101, 0, true}) || got[1] != (mark{1, "k0", 103, 0, false}) {
		t.Errorf("the last marks are %+v", got)
	}
}
