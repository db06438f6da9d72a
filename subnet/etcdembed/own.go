package etcdembed

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

const (
	// maxTTL is how long a host may have etcd keep a key that it does not renew.
	maxTTL = 366 * 24 * time.Hour
	// writeTries is how often a write is looked at anew because somebody changed a key of it meanwhile.
	writeTries = 5
)

// operation is what a request writes to keys; nil: it is no such request.
func operation(req any) *pb.RequestOp {
	switch r := req.(type) {
	case *pb.PutRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
	case *pb.DeleteRangeRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
	case *pb.TxnRequest:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
	}
	return nil
}

// answer is that to the request that an operation was made of.
func answer(got *pb.TxnResponse) any {
	switch r := got.Responses[0].Response.(type) {
	case *pb.ResponseOp_ResponsePut:
		r.ResponsePut.Header = got.Header
		return r.ResponsePut
	case *pb.ResponseOp_ResponseDeleteRange:
		r.ResponseDeleteRange.Header = got.Header
		return r.ResponseDeleteRange
	case *pb.ResponseOp_ResponseTxn:
		r.ResponseTxn.Header = got.Header
		return r.ResponseTxn
	}
	return nil // there is no other of an operation
}

// write does what a host may do: in a transaction that does nothing if a key that it was judged by is another by then, or
// the host is not of the network any more. What only reads is left to etcd; then there is no answer, and no error.
func (g *gate) write(ctx context.Context, c caller, op *pb.RequestOp, kv pb.KVServer) (any, error) {
	for range writeTries {
		j := judge{gate: g, ctx: ctx, caller: c, there: map[string]*mvccpb.KeyValue{}, leases: map[held]*subnet.Lease{}}
		if err := j.operation(op, nil); err != nil {
			return nil, err
		}
		if len(j.there) == 0 {
			return nil, nil
		}
		if j.forever > j.reserved {
			return nil, j.refuse(j.unending, "it would never end: give it a lease of etcd")
		}
		got, err := kv.Txn(ctx, &pb.TxnRequest{Compare: j.same(), Success: []*pb.RequestOp{op}})
		if err != nil {
			return nil, err
		}
		if got.Succeeded {
			return answer(got), nil
		}
	}
	return nil, status.Error(codes.Unavailable, "others change what is to be written again and again")
}

// judge looks at one write.
type judge struct {
	*gate
	ctx      context.Context
	caller   caller
	there    map[string]*mvccpb.KeyValue // what stands at the keys that it writes; nil: nothing
	forever  int                         // values that do not end
	reserved int                         // own ones that are there, which these may take the place of
	unending string                      // a key of forever
	leases   map[held]*subnet.Lease      // of a subnet; nil: none
}

// held is what one of etcd's leases, which is the caller's, holds in a network.
type held struct {
	network string
	lease   int64
}

// same is what must still be so when it is done.
func (j *judge) same() (same []*pb.Compare) {
	for key, kv := range j.there {
		same = append(same, &pb.Compare{Key: []byte(key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: kv.GetModRevision()}})
	}
	if j.caller.Host != "" {
		same = append(same, &pb.Compare{Key: []byte(j.hostsKey() + j.caller.Host), Target: pb.Compare_CREATE, Result: pb.Compare_GREATER,
			TargetUnion: &pb.Compare_CreateRevision{}})
	}
	return same
}

func (j *judge) refuse(key, why string) refusal {
	return refusal{refusedWrite, fmt.Sprintf("%s may not write %.100q: %s", j.caller, key, why)}
}

// operation says why it may not be done. It is done only if what is compared is so.
func (j *judge) operation(op *pb.RequestOp, compared []*pb.Compare) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return j.read(j.caller, r.RequestRange.Key, r.RequestRange.RangeEnd)
	case *pb.RequestOp_RequestPut:
		return j.put(r.RequestPut, compared)
	case *pb.RequestOp_RequestDeleteRange:
		if d := r.RequestDeleteRange; len(d.RangeEnd) > 0 {
			return j.refuse(string(d.Key), "hosts write one key at a time, and no range")
		}
		return j.change(string(r.RequestDeleteRange.Key), nil, compared)
	case *pb.RequestOp_RequestTxn:
		return j.txn(r.RequestTxn)
	}
	return j.refuse("", "it is no operation that is known here")
}

func (j *judge) txn(t *pb.TxnRequest) error {
	for _, c := range t.Compare {
		if err := j.read(j.caller, c.Key, c.RangeEnd); err != nil {
			return err
		}
	}
	for _, op := range t.Success {
		if err := j.operation(op, t.Compare); err != nil {
			return err
		}
	}
	for _, op := range t.Failure {
		if err := j.operation(op, nil); err != nil {
			return err
		}
	}
	return nil
}

// within is which network a key stands in, "" for the one that has no name, and the key without what is above that.
func (g *gate) within(key string) (network, rest string) {
	rest, ok := strings.CutPrefix(key, g.prefix)
	if !ok {
		return "", ""
	}
	if name, below, ok := strings.Cut(rest, "/"); ok && subnet.ValidNetworkName(name) == nil {
		return name, below
	}
	return "", rest
}

// exists says why nothing may be put into a network of a name: nobody has made it, or it was deleted.
func (j *judge) exists(key, network string) error {
	if network == "" {
		return nil
	}
	config, err := j.at(j.ctx, j.prefix+network+"/config")
	if err == nil && config == nil {
		return j.refuse(key, "there is no network "+network)
	}
	return err
}

// put says why a value may not be put: a lease must say that it is the host's, and where that is.
func (j *judge) put(p *pb.PutRequest, compared []*pb.Compare) error {
	key := string(p.Key)
	network, rest := j.within(key)
	endpoint, isEndpoint := strings.CutPrefix(rest, endpoints)
	name, isLease := strings.CutPrefix(rest, "subnets/")
	if !isEndpoint && !isLease {
		return j.refuse(key, onlyOperators)
	}
	if err := j.exists(key, network); err != nil {
		return err
	}
	if isEndpoint {
		return j.putEndpoint(key, endpoint, p, compared)
	}
	l, err := subnet.ParseLease(name, p.Value)
	switch {
	case err != nil:
		return j.refuse(key, err.Error())
	case p.IgnoreValue, p.IgnoreLease:
		return j.refuse(key, "a lease is put whole")
	case j.caller.Host != "" && l.HostID != j.caller.Host, j.caller.Host == "" && j.hosts.knows(l.HostID):
		return j.refuse(key, fmt.Sprintf("the value names host id %q, its certificate does not", l.HostID))
	case len(addresses(l)) < len(l.Endpoints) || !j.caller.has(addresses(l)):
		return j.refuse(key, fmt.Sprintf("the value is of %s, its certificate names %v: issue it for the address", l.Who(), j.caller.IPs))
	}
	if p.Lease == 0 {
		j.forever, j.unending = j.forever+1, key
	} else if err := j.lease(j.ctx, j.caller, p.Lease, nil); err != nil {
		return err
	}
	return j.change(key, &l, compared)
}

// change says why what stands at a key may not go, for another lease or none.
func (j *judge) change(key string, next *subnet.Lease, compared []*pb.Compare) error {
	if _, rest := j.within(key); !strings.HasPrefix(rest, "subnets/") && !strings.HasPrefix(rest, endpoints) {
		return j.refuse(key, onlyOperators)
	}
	kv, ok := j.there[key]
	if !ok {
		var err error
		if kv, err = j.at(j.ctx, key); err != nil {
			return err
		}
		j.there[key] = kv
	}
	if kv == nil {
		return nil
	}
	who, own := j.owns(j.caller, kv, next)
	switch {
	case own && kv.Lease == 0:
		j.reserved++
	case own:
	case !contradicted(compared, kv): // who comes too late is told so by etcd, and that is no refusal
		return j.refuse(key, who+" stands there")
	}
	return nil
}

// contradicted says whether one of the compares is not so while a key is as it is.
func contradicted(compared []*pb.Compare, kv *mvccpb.KeyValue) bool {
	for _, c := range compared {
		if string(c.Key) != string(kv.Key) || len(c.RangeEnd) > 0 || c.Result != pb.Compare_EQUAL {
			continue
		}
		switch u := c.TargetUnion.(type) {
		case *pb.Compare_ModRevision:
			if c.Target == pb.Compare_MOD && u.ModRevision != kv.ModRevision {
				return true
			}
		case *pb.Compare_CreateRevision:
			if c.Target == pb.Compare_CREATE && u.CreateRevision != kv.CreateRevision {
				return true
			}
		case *pb.Compare_Version:
			if c.Target == pb.Compare_VERSION && u.Version != kv.Version {
				return true
			}
		}
	}
	return false
}

// owns says whose a value is, and whether it is the host's own: by its host id, or because all its addresses are the host's,
// flannel's and one that the host put under an identity that it lost. A reservation by host id alone is taken by whose
// certificate names it or, if that names none, by who says so in the lease that is next. A peer outside the network is no host's.
func (g *gate) owns(c caller, kv *mvccpb.KeyValue, next *subnet.Lease) (who string, own bool) {
	_, rest := g.within(string(kv.Key))
	if name, ok := strings.CutPrefix(rest, endpoints); ok {
		_, host, _, _ := policy.ParseEndpointKey(name)
		return "an endpoint of host " + host, g.isHost(c, host)
	}
	l, err := subnet.ParseLease(strings.TrimPrefix(rest, "subnets/"), kv.Value)
	if err != nil {
		return "what is no lease", false
	}
	if l.Outside() {
		return l.Who(), false
	}
	reserved := len(addresses(l)) == 0 && c.Host == "" && next != nil && next.HostID == l.HostID
	return "the lease of " + l.Who(), c.Host != "" && l.HostID == c.Host || c.has(addresses(l)) && !g.hosts.knows(l.HostID) || reserved
}

// addresses are where a lease says that its host is.
func addresses(l subnet.Lease) (addrs []netip.Addr) {
	for _, e := range l.Endpoints {
		if e.PublicIP.IsValid() {
			addrs = append(addrs, e.PublicIP)
		}
	}
	return addrs
}

// at is what stands at a key, as this member of etcd has it; nil: nothing.
func (g *gate) at(ctx context.Context, key string) (*mvccpb.KeyValue, error) {
	got, err := g.etcd.Load().KV().Range(ctx, []byte(key), nil, mvcc.RangeOptions{})
	if err != nil || len(got.KVs) == 0 {
		return nil, err
	}
	return got.KVs[0], nil
}

// grant says why etcd may not grant a lease, and chooses its number: until a key shows it, nobody else guesses it.
func grant(c caller, r *pb.LeaseGrantRequest) error {
	switch {
	case r.ID != 0:
		return refusal{refusedLease, fmt.Sprintf("%s may not choose the number of a lease: let etcd do it", c)}
	case r.TTL > int64(maxTTL/time.Second):
		return refusal{refusedLease, fmt.Sprintf("%s may not have a lease of %d seconds: at most %d, a year", c, r.TTL, int64(maxTTL/time.Second))}
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails
	r.ID = int64(binary.NativeEndian.Uint64(id[:]) & math.MaxInt64)
	return nil
}

// lease says why one of etcd's leases is not the host's: it holds another's key. One that etcd does not know it denies itself.
// Each, which may be nil, is called with what the lease holds.
func (g *gate) lease(ctx context.Context, c caller, id int64, each func(*mvccpb.KeyValue)) error {
	l, err := g.etcd.Load().LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
	if errors.Is(err, lease.ErrLeaseNotFound) {
		return nil
	}
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	for _, key := range l.Keys {
		kv, err := g.at(ctx, string(key))
		if err != nil {
			return err
		}
		if kv == nil || kv.Lease != id { // what the leader knows this member has not heard yet, or it is just going
			return status.Errorf(codes.Unavailable, "etcd is not sure what lease %x holds: try again", id)
		}
		if who, own := g.owns(c, kv, nil); !own {
			return refusal{refusedLease, fmt.Sprintf("%s may not use lease %x of etcd: it holds %.100q, and %s stands there",
				c, id, key, who)}
		}
		if each != nil {
			each(kv)
		}
	}
	return nil
}
