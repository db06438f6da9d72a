package etcdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// position is from where a mirror can go on, and how it knows that etcd is still the one that it followed.
type position struct {
	cluster uint64 // etcd's id of itself; 0: nothing is known, list
	known   []known
	marks   []mark // the last maxMarks changes that are known, of one key each, the latest at the end
}

// maxMarks is how many changes are compared. One is not enough: what hosts do after a restore is much the same after
// another one of the same backup.
const maxMarks = 16

// known is up to where a range is known.
type known struct {
	revision int64
	promised int64 // up to where etcd said last to have told everything
}

// mark is a change: an etcd that was restored from a backup, and went on since, may have all other keys as they were.
type mark struct {
	in       int // the range
	key      string
	revision int64 // of the change
	lease    int64
	gone     bool // the key was deleted
}

// see takes note of a key that was listed or has changed.
func (p *position) see(in int, kv *mvccpb.KeyValue, gone bool) {
	if len(p.marks) == maxMarks && kv.ModRevision < p.marks[0].revision {
		return
	}
	m := mark{in, string(kv.Key), kv.ModRevision, kv.Lease, gone}
	p.marks = slices.DeleteFunc(p.marks, func(old mark) bool { return old.key == m.key })
	i, _ := slices.BinarySearchFunc(p.marks, m, func(a, b mark) int { return cmp.Compare(a.revision, b.revision) })
	if p.marks = slices.Insert(p.marks, i, m); len(p.marks) > maxMarks {
		p.marks = slices.Delete(p.marks, 0, 1)
	}
}

// progress takes in that etcd says to have told all changes of a range up to a revision. That counts only when it has
// said so once more: etcd before 3.4.25 and 3.5.8 may overtake a change that is on its way (etcd#15220), which has come
// by then.
func (p *position) progress(in int, revision int64) {
	k := &p.known[in]
	k.revision, k.promised = max(k.revision, k.promised), revision
}

// verify asks etcd for what it held when everything was known, and returns errStale if that is not the same: then it
// was wiped, restored from a backup, or has forgotten. What changed since is for the watch to tell. It compares the last
// n changes, of more than one with etcd's lease, and also returns how long the answer took.
func (p position) verify(ctx context.Context, c *conn, n int) (took time.Duration, err error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	marks := p.marks[max(0, len(p.marks)-n):]
	var gets []clientv3.Op
	for _, m := range marks {
		opts := []clientv3.OpOption{clientv3.WithRev(p.known[m.in].revision)}
		if n == 1 {
			opts = append(opts, clientv3.WithKeysOnly())
		}
		gets = append(gets, clientv3.OpGet(m.key, opts...))
	}
	asked := time.Now()
	got, err := c.Txn(ctx).Then(gets...).Commit()
	took = time.Since(asked)
	switch {
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrFutureRev), status.Code(err) == codes.ResourceExhausted:
		return took, fmt.Errorf("%w: %w", errStale, describe(err, c.Endpoints()...))
	case err != nil:
		return took, describe(err, c.Endpoints()...)
	}
	err = p.check(got.Header)
	for i, m := range marks {
		err = cmp.Or(err, m.check(got.Responses[i].GetResponseRange().Kvs, p.known[m.in].revision))
	}
	return took, err
}

func (p position) clone() position {
	p.known, p.marks = slices.Clone(p.known), slices.Clone(p.marks)
	return p
}

// resume forgets what was promised on a connection that is gone: what was overtaken did not come any more.
func (p *position) resume() {
	for in := range p.known {
		p.known[in].promised = 0
	}
}

// check looks at the header of any answer.
func (p *position) check(h *etcdserverpb.ResponseHeader) error {
	if h.ClusterId != p.cluster {
		return fmt.Errorf("%w: its cluster id is %x, not %x", errStale, h.ClusterId, p.cluster)
	}
	for _, k := range p.known {
		if h.Revision < k.revision {
			return fmt.Errorf("%w: it is at revision %d, not yet at %d", errStale, h.Revision, k.revision)
		}
	}
	return nil
}

// check compares what etcd says of the key at a revision with what it was then. Without the value it does not say the lease.
func (m mark) check(kvs []*mvccpb.KeyValue, at int64) error {
	switch {
	case m.gone && len(kvs) == 0, !m.gone && len(kvs) > 0 && kvs[0].ModRevision == m.revision && (len(kvs[0].Value) == 0 || kvs[0].Lease == m.lease):
		return nil
	}
	return fmt.Errorf("%w: at revision %d it does not hold %s as it was", errStale, at, m.key)
}
