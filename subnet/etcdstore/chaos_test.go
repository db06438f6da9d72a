package etcdstore

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

// TestChaos has everything go wrong at once that can, and looks at etcd's whole history for two owners of one address.
// OVERLAYD_CHAOS is for how long, like 2m; OVERLAYD_CHAOS_SEED replays the faults of a run. Afterwards every host has
// one lease and knows all others within ten seconds, on a machine with nothing else to do.
func TestChaos(t *testing.T) {
	t.Parallel()
	length, seed := 8*time.Second, rand.Uint64()
	var err error
	if text := os.Getenv("OVERLAYD_CHAOS"); text != "" {
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv("OVERLAYD_CHAOS_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	const ipv4 = `{"Network":"10.5.0.0/18","SubnetLen":24,"Backend":{"Type":"vxlan"}}`
	const dual = `{"Network":"10.5.0.0/18","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00:5::/58","Backend":{"Type":"vxlan"}}`
	for name, configs := range map[string][2]string{
		"IPv4": {ipv4, ipv4}, "dual stack": {dual, dual}, "now and then dual stack": {dual, ipv4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Logf("OVERLAYD_CHAOS=%v OVERLAYD_CHAOS_SEED=%d", length, seed)
			newFleet(t, configs).survive(planChaos(seed, length))
		})
	}
}

// survive brings the faults about, and checks what is promised during them and afterwards.
func (f *fleet) survive(plan []fault) {
	t := f.t
	for _, h := range f.members {
		f.forget(h, uint64(h.addr)*0x9e3779b97f4a7c15)
		f.start(h)
	}
	begin := time.Now()
	var done []string
	for _, p := range plan {
		time.Sleep(time.Until(begin.Add(p.at)))
		f.inflict(p)
		done = append(done, p.String())
	}
	end := time.Now()
	s := f.checker()
	var err error
	for time.Since(end) < 3*patience {
		if err = f.unsettled(s); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	wrong := f.history.verdict()
	if err != nil {
		wrong = append(wrong, "not settled: "+err.Error())
	}
	t.Logf("%d faults, %d lives of etcd, settled %v after the last fault", len(plan), len(f.history.lives), time.Since(end).Round(time.Millisecond))
	if len(wrong) > 0 {
		file, err := os.CreateTemp("", strings.ReplaceAll(t.Name(), "/", "-")+"-*.log") // not removed
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(file, strings.Join(done, "\n")+"\n"+f.log.buf.String())
		t.Errorf("what was done and logged is in %s\n%s", file.Name(), strings.Join(wrong, "\n"))
		file.Close()
	}
}

// inflict does what is planned.
func (f *fleet) inflict(p fault) {
	f.t.Helper()
	h := f.members[p.host]
	switch p.kind {
	case "kill":
		f.kill(h)
	case "forget":
		f.kill(h)
		f.forget(h, p.n)
	case "start":
		f.start(h)
	case "refuse":
		f.set(h, refuse)
	case "swallow":
		f.set(h, swallow)
	case "pause":
		f.set(h, hold)
	case "heal":
		f.set(h, pass)
	case "move":
		h.who.Lock()
		h.addr += chaosHosts
		h.who.Unlock()
		if h.host != nil {
			h.Advertise(f.self(h))
		}
	case "clone":
		f.clone(h, p.n)
	case "family":
		f.etcd.put(f.t, prefix+"/config", []string{f.config, f.other}[p.n%2])
	case "compact":
		ctx, cancel := f.etcdCtx()
		defer cancel()
		f.etcd.raw.Compact(ctx, max(1, f.history.seen()-int64(p.n%20))) // fails if it has compacted more already
	case "backup":
		f.backUp()
	case "restore":
		f.restore()
	case "restart":
		f.restartEtcd()
	default:
		f.spoil(p)
	}
}

// spoil puts or deletes a key that is not the chaos's to put or delete.
func (f *fleet) spoil(p fault) {
	f.t.Helper()
	etcd, h := f.etcd, f.members[p.host]
	keys := etcd.keys(f.t)
	slot := keyOf(f.network.Slot(p.n % f.network.Slots()))
	if len(keys) == 0 {
		return
	}
	key := keys[p.n%uint64(len(keys))]
	value, leaseID := etcd.get(f.t, subnets+key)
	switch p.kind {
	case "delete":
		etcd.del(f.t, subnets+key)
	case "revoke":
		ctx, cancel := f.etcdCtx()
		defer cancel()
		etcd.raw.Revoke(ctx, clientv3.LeaseID(leaseID)) // fails if it has just ended
	case "junk":
		var opts []clientv3.OpOption
		if leaseID != 0 && p.n%4 != 0 {
			opts = append(opts, clientv3.WithIgnoreLease()) // otherwise it stays
		}
		ctx, cancel := f.etcdCtx()
		defer cancel()
		etcd.raw.Put(ctx, subnets+key, strings.TrimSuffix(value, "}"), opts...) // fails if the key has just gone
	case "flannel":
		f.ghost(key, f.advert(h.addr))
	case "usurp":
		f.ghost(key, f.stranger(p.n))
	case "garbage":
		wide := strings.Replace(slot, "-24", "-23", 1)
		for i, key := range []string{"junk", wide, "10.99.1.0-24"} {
			if p.n>>i&1 == 1 {
				f.ghost(key, f.stranger(p.n))
			}
		}
	case "reserve":
		f.reserve(h, p.n)
	case "config":
		config := f.config
		if p.n%2 == 0 {
			config = strings.Replace(config, "vxlan", "host-gw", 1)
		}
		etcd.put(f.t, prefix+"/config", config)
	default:
		f.t.Fatalf("no such fault: %s", p.kind)
	}
}

// reserve makes a reservation for a host, or takes back any one that nobody uses.
func (f *fleet) reserve(h *chaosHost, n uint64) {
	s := f.checker()
	all, err := s.Leases(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	i := slices.IndexFunc(all.Records, func(r subnet.Record) bool { return r.LeaseID == 0 && r.Backend == "" })
	if i >= 0 && n%2 == 0 {
		s.Release(f.t.Context(), all.Records[i]) // fails if the host has just come
		return
	}
	l := subnet.Lease{HostID: h.identity()}
	for _, p := range f.network.Slot(n % f.network.Slots()) {
		l.Endpoints = append(l.Endpoints, subnet.Endpoint{Subnet: p})
	}
	s.Reserve(f.t.Context(), l) // fails if the slot is taken
}

// stranger is what a host says that is none of the fleet.
func (f *fleet) stranger(n uint64) subnet.Lease {
	l := f.advert(1<<15 + int(n%1000))
	l.HostID = fmt.Sprint("stranger", n%1000)
	return l
}

// ghost puts a key for a while, as a host that dies at once would; one that is no key of a lease holds nonsense.
func (f *fleet) ghost(key string, l subnet.Lease) {
	f.t.Helper()
	ctx, cancel := f.etcdCtx()
	defer cancel()
	value := []byte("nonsense")
	if p, err := subnet.ParseKey(key); err == nil {
		if value, err = leaseFor(l, p).Value(); err != nil {
			f.t.Fatal(err)
		}
	}
	lease, err := f.etcd.raw.Grant(ctx, 2)
	if err != nil {
		f.t.Fatal(err)
	}
	f.etcd.put(f.t, subnets+key, string(value), clientv3.WithLease(lease.ID))
}
