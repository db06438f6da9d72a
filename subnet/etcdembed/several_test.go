package etcdembed

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestSeveralNetworks has hosts do in a named network what they may do in the unnamed one, and no more.
func TestSeveralNetworks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	const blue, none = testPrefix + "/blue/", testPrefix + "/none/"
	err2 := func(_ any, err error) error { return err }
	for _, key := range []string{"config", "overlayd/policy/default/deny"} {
		if _, err := r.operator.Put(ctx, blue+key, "{}"); err != nil {
			t.Fatal(err)
		}
	}
	lease := func(c *clientv3.Client) clientv3.LeaseID {
		granted, err := c.Grant(ctx, 60)
		if err != nil {
			t.Fatal(err)
		}
		return granted.ID
	}
	a, b := lease(r.a), lease(r.b)
	put := func(c *clientv3.Client, key, value string, id clientv3.LeaseID) func() error {
		return func() error { return err2(c.Put(ctx, key, value, clientv3.WithLease(id))) }
	}
	const ofA, ofB = blue + "subnets/10.20.1.0-24", blue + "subnets/10.20.2.0-24"
	valueA, valueB := value(hostA, "192.0.2.1"), value(hostB, "192.0.2.2")
	for _, may := range []struct {
		name string
		try  func() error
	}{
		{"a claims", put(r.a, ofA, valueA, a)},
		{"b claims", put(r.b, ofB, valueB, b)},
		{"a changes", put(r.a, ofA, valueA, a)},
		{"an endpoint", put(r.a, blue+"overlayd/endpoints/default/aaaa/10.20.1.9", endpoint("10.20.1.9"), a)},
		{"an endpoint goes", func() error { return err2(r.a.Delete(ctx, blue+"overlayd/endpoints/default/aaaa/10.20.1.9")) }},
		{"an endpoint of the unnamed network", put(r.a, endpointsKey+"default/aaaa/10.5.1.9", endpoint("10.5.1.9"), r.leaseA)},
		{"leases read", func() error { return err2(r.a.Get(ctx, blue+"subnets/", clientv3.WithPrefix())) }},
		{"policies read", func() error { return err2(r.a.Get(ctx, blue+"overlayd/policy", clientv3.WithPrefix())) }},
		{"names read", func() error { return err2(r.a.Get(ctx, testPrefix+"/overlayd/networks/", clientv3.WithPrefix())) }},
		{"peerings read", func() error { return err2(r.a.Get(ctx, testPrefix+"/overlayd/peered/", clientv3.WithPrefix())) }},
		{"a renews", func() error { return err2(r.a.KeepAliveOnce(ctx, a)) }},
		{"a releases", func() error { return err2(r.a.Delete(ctx, ofA)) }},
		{"a claims again", put(r.a, ofA, valueA, a)},
	} {
		if err := may.try(); err != nil {
			t.Errorf("%s: %v", may.name, err)
		}
	}
	before, err := r.operator.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, attack := range []struct {
		name, want string
		try        func() error
	}{
		{"another's lease", "the lease of", put(r.b, ofA, valueB, b)},
		{"another's lease deleted", "the lease of", func() error { return err2(r.b.Delete(ctx, ofA)) }},
		{"another's name", "names host id", put(r.b, blue+"subnets/10.20.9.0-24", valueA, b)},
		{"another's address", "issue it for the address", put(r.b, blue+"subnets/10.20.9.0-24", value(hostB, "192.0.2.1"), b)},
		{"a lease for ever", "would never end", func() error { return err2(r.b.Put(ctx, blue+"subnets/10.20.9.0-24", valueB)) }},
		{"on another's lease", "it holds", put(r.b, blue+"subnets/10.20.9.0-24", valueB, a)},
		{"leases deleted together", "no range", func() error { return err2(r.b.Delete(ctx, blue+"subnets/", clientv3.WithPrefix())) }},
		{"a network that is none", "there is no network none", put(r.b, none+"subnets/10.20.9.0-24", valueB, b)},
		{"endpoints of a network that is none", "there is no network none", put(r.b, none+"overlayd/endpoints/default/bbbb/10.20.2.9", endpoint("10.20.2.9"), b)},
		{"a network within a network", "only operators may", put(r.b, blue+"red/subnets/10.20.9.0-24", valueB, b)},
		{"what is no name", "only operators may", put(r.b, testPrefix+"/Blue/subnets/10.20.9.0-24", valueB, b)},
		{"leases of what is no network", "only operators may", put(r.b, testPrefix+"/overlayd/subnets/10.20.9.0-24", valueB, b)},
		{"the config", "only operators may", put(r.b, blue+"config", "{}", b)},
		{"a new network", "only operators may", put(r.b, none+"config", "{}", b)},
		{"a new network's name", "only operators may", put(r.b, testPrefix+"/overlayd/networks/none", "{}", b)},
		{"a peering", "only operators may", put(r.b, testPrefix+"/overlayd/peered/blue,default", "{}", b)},
		{"a policy", "only operators may", put(r.b, blue+"overlayd/policy/default/x", "{}", b)},
		{"a policy deleted", "only operators may", func() error { return err2(r.b.Delete(ctx, blue+"overlayd/policy/default/deny")) }},
		{"another's endpoint", "of host id", put(r.b, blue+"overlayd/endpoints/default/aaaa/10.20.1.9", endpoint("10.20.1.9"), b)},
		{"an endpoint in another's subnet", "is not in", put(r.b, blue+"overlayd/endpoints/default/bbbb/10.20.1.9", endpoint("10.20.1.9"), b)},
		{"an endpoint of the unnamed network in this one", "is not in", put(r.b, blue+"overlayd/endpoints/default/bbbb/10.5.2.9", endpoint("10.5.2.9"), b)},
		{"tokens by a range around them", "may not read", func() error { return err2(r.b.Get(ctx, testPrefix+"/blue", clientv3.WithRange(testPrefix+"/p"))) }},
	} {
		err := attack.try()
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), attack.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want a refusal in a line with %q", attack.name, err, attack.want)
		}
	}
	after, err := r.operator.Get(ctx, "", clientv3.WithPrefix())
	if err != nil || after.Header.Revision != before.Header.Revision {
		t.Errorf("something was written: revision %d, was %d; %v", after.Header.Revision, before.Header.Revision, err)
	}
}
