package etcdstore

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/overlayd/overlayd/subnet/leasecache"
)

// What TestChaos found, each by itself.

// A host that must wait before it writes again said that it holds a lease that it knew to be taken.
func TestTakenIsToldWhileWritesWait(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	for i := range 5 { // more would have to wait
		rev := etcd.put(t, subnets+key, hostValue("h1", fmt.Sprintf("192.0.2.%d", 100+i)))
		h.await("puts it right", func(u Update) bool { return u.Own.Record.ModRevision > rev })
	}
	etcd.put(t, subnets+key, hostValue("h1", "192.0.2.200"))
	etcd.put(t, subnets+key, hostValue("h2", "192.0.2.2"))
	etcd.put(t, subnets+"10.5.200.0-24", hostValue("h3", "192.0.2.3"))
	h.awaitPeers("10.5.200.0-24")
	h.mu.Lock()
	defer h.mu.Unlock()
	if own := h.last.Own; own.State != Taken {
		t.Errorf("%s of %s at revision %d, which another host has since", own.State, key, h.last.Revision)
	}
}

const dualNetwork = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/56","Backend":{"Type":"vxlan"}}`

// halves are a subnet of each family, of these slots and some more.
func halves(v4, v6 int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", v4)), netip.MustParsePrefix(fmt.Sprintf("fd00:5:0:%x::/64", v6)),
	}
}

// Two hosts that did not know of each other got one subnet under two keys.
func TestPairsDoNotOverlap(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ first, second []netip.Prefix }{
		"pair, then slot":       {halves(3, 7), halves(7, 7)},
		"pair, then its other":  {halves(3, 7), halves(3, 3)},
		"slot, then pair":       {halves(7, 7), halves(3, 7)},
		"slot, then its other":  {halves(3, 3), halves(3, 7)},
		"pairs that share IPv4": {halves(3, 7), halves(3, 8)},
		"pairs that share IPv6": {halves(3, 7), halves(4, 7)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if key := claimAtOnce(t, dualNetwork, JoinConfig{Previous: tc.first}, JoinConfig{Previous: tc.second}); key == keyOf(tc.second) {
				t.Errorf("both got what they wanted")
			}
		})
	}
	// These share slots, but no address.
	if key := claimAtOnce(t, dualNetwork, JoinConfig{Previous: halves(3, 7)}, JoinConfig{Previous: halves(7, 3)}); key != keyOf(halves(7, 3)) {
		t.Errorf("the second got %s", key)
	}
}

// Two hosts that remember different configs, while etcd has none that can be followed, cut the range differently.
func TestRememberedConfigsDoNotOverlap(t *testing.T) {
	t.Parallel()
	remembers := func(length int) JoinConfig {
		p, err := netip.MustParseAddr("10.5.32.0").Prefix(length)
		if err != nil {
			t.Fatal(err)
		}
		config := fmt.Sprintf(`{"Network":"10.5.0.0/16","SubnetLen":%d}`, length)
		return JoinConfig{Previous: []netip.Prefix{p}, Last: leasecache.View{Config: []byte(config)}}
	}
	claimAtOnce(t, "junk", remembers(24), remembers(23))
	claimAtOnce(t, "junk", remembers(23), remembers(24))
}

// claimAtOnce has two hosts claim, the second without having heard of the first. It fails if they ever overlap, and
// returns the key that the second gets.
func claimAtOnce(t *testing.T, config string, first, second JoinConfig) string {
	t.Helper()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", config)
	all := newHistory()
	stop := all.follow(t, etcd.Endpoint())
	s := openStore(t, etcd.Endpoint())
	var once sync.Once
	s.client.dialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if strings.HasSuffix(method, "/LeaseGrant") { // the second has chosen
				once.Do(func() {
					first.HostID = "chaos1"
					join(t, openStore(t, etcd.Endpoint()), first, "192.0.2.1", "2001:db8::1").awaitHeld(keyOf(first.Previous))
				})
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		})}
	second.HostID = "chaos2"
	own := join(t, s, second, "192.0.2.2", "2001:db8::2").awaitHeld("").Own.Record
	all.await(t, own.ModRevision)
	stop()
	if wrong := all.verdict(); len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
	return own.Key()
}

// A host whose lease had ended put it again over a wider one that somebody has since.
func TestLostLeaseIsNotPutOverAnother(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	p := startProxy(t, etcd.addr())
	h := join(t, openStore(t, p.endpoint()), JoinConfig{HostID: "h1", Previous: []netip.Prefix{netip.MustParsePrefix("10.5.33.0/24")}}, "192.0.2.1")
	key := h.awaitHeld("").Own.Record.Key()
	p.set(refuse)
	etcd.del(t, subnets+key)
	etcd.put(t, subnets+"10.5.32.0-23", hostValue("h2", "192.0.2.2"))
	p.set(pass)
	u := h.await("sees that it is taken", func(u Update) bool { return u.Own.State == Taken })
	if !strings.Contains(u.Own.Reason, "10.5.32.0-23") || slices.Contains(etcd.keys(t), key) {
		t.Errorf("%s; keys %s", u.Own.Reason, etcd.keys(t))
	}
	etcd.del(t, subnets+"10.5.32.0-23")
	h.awaitHeld(key)
}

// A lease that the host had given up came back with a restore of etcd, and was kept alive for good.
func TestStrayLeasesAreGivenBack(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	const previous, reserved, stray, flannels = "10.5.33.0-24", "10.5.34.0-24", "10.5.35.0-24", "10.5.36.0-24"
	lease(t, etcd, subnets+previous, hostValue("h1", "192.0.2.1"))
	etcd.put(t, subnets+reserved, `{"HostID":"h1"}`)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1", Previous: []netip.Prefix{netip.MustParsePrefix("10.5.33.0/24")}}, "192.0.2.1")
	h.awaitHeld(reserved)
	lease(t, etcd, subnets+flannels, flannelValue("192.0.2.1"))
	for range 2 {
		lease(t, etcd, subnets+stray, hostValue("h1", "192.0.2.1"))
		h.await("has a lease too many", func(u Update) bool { return slices.Contains(u.Own.Leaves, mustSubnets(t, stray)[0]) })
		eventually(t, "the stray lease is gone", func() bool {
			h.Vacant(mustSubnets(t, stray))
			return !slices.Contains(etcd.keys(t), stray)
		})
	}
	// Containers may live in what the host had before; and the reservation is not the host's to delete.
	if got, want := etcd.keys(t), []string{previous, reserved, flannels}; !slices.Equal(got, want) {
		t.Errorf("keys %s, want %s", got, want)
	}
}

// A subnet that was abandoned stayed with the etcd lease that the host goes on renewing.
func TestAbandonedSubnetHasItsOwnLease(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	h := join(t, openStore(t, etcd.Endpoint()), JoinConfig{HostID: "h1"}, "192.0.2.1")
	before := h.awaitHeld("").Own.Record
	etcd.put(t, subnets+before.Key(), hostValue("h2", "192.0.2.2"))
	h.await("sees that it is taken", func(u Update) bool { return u.Own.State == Taken })
	h.vacate()
	after := h.await("has another", func(u Update) bool { return u.Own.State == Held }).Own.Record
	if after.LeaseID == before.LeaseID {
		t.Errorf("%s and %s have one lease", before.Key(), after.Key())
	}
}

// A host whose address changed while its claim was under way took its own lease for that of a copy.
func TestMoveDuringClaim(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	var h *host
	ready := make(chan struct{})
	s.client.dialOptions = []grpc.DialOption{grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if strings.HasSuffix(method, "/Txn") {
				<-ready
				h.Advertise(advert("192.0.2.99"))
			}
			return invoke(ctx, method, req, reply, cc, opts...)
		})}
	h = join(t, s, JoinConfig{HostID: "h1"}, "192.0.2.1")
	close(ready)
	own := h.await("says the new address", func(u Update) bool {
		return u.Own.State == Held && u.Own.Record.Endpoints[0].PublicIP.String() == "192.0.2.99"
	}).Own.Record
	if steps := own.ModRevision - own.CreateRevision; steps > 1 {
		t.Errorf("%d writes after the claim, want one at most", steps)
	}
}
