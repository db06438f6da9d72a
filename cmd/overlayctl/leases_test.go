package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/overlayd/overlayd/subnet"
)

// leases N writes N leases in 10.0.0.0/8, each with an etcd lease of its own.
func manyLeases(ts *testscript.TestScript, client *clientv3.Client, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	prefix := ts.Getenv("PREFIX")
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for i := 1; i <= n; i++ {
		g.Go(func() error {
			granted, err := client.Grant(ctx, 86400)
			if err != nil {
				return err
			}
			key := fmt.Sprintf("%s/subnets/10.%d.%d.0-24", prefix, i/256, i%256)
			value := fmt.Sprintf(`{"PublicIP":"172.30.%d.%d","PublicIPv6":null,"BackendType":"host-gw"}`, i/256, i%256)
			_, err = client.Put(ctx, key, value, clientv3.WithLease(granted.ID))
			return err
		})
	}
	ts.Check(g.Wait())
}

func TestMeans(t *testing.T) {
	t.Parallel()
	l := leaseOf("10.5.1.0/24", "fd00:5:0:1::/64")
	l.Host, l.HostID = "a", "0a0a"
	l.Endpoints[0].PublicIP = netip.MustParseAddr("172.30.0.1")
	for name, want := range map[string]bool{
		"":                    false,
		"A":                   false,
		"0a":                  false,
		"10.5.1.0/25":         false,
		"10.5.2.1":            false,
		"172.30.0.2":          false,
		"::ffff:172.30.0.1":   true,
		"::ffff:10.5.1.7":     true,
		"a":                   true,
		"0a0a":                true,
		"10.5.1.0/24":         true,
		"10.5.1.7/24":         true,
		"10.5.1.7":            true,
		"172.30.0.1":          true,
		"fd00:5:0:1::/64":     true,
		"fd00:5:0:1:0:0:0:99": true,
	} {
		if got := means(l, name); got != want {
			t.Errorf("means %q: %v, want %v", name, got, want)
		}
	}
	if means(leaseOf("10.5.1.0/24"), "") {
		t.Error("nobody means a host without a name")
	}
}

func TestSameLease(t *testing.T) {
	t.Parallel()
	old := subnet.Record{Lease: leaseOf("10.5.1.0/24"), CreateRevision: 1, ModRevision: 1, LeaseID: 1}
	renewed, moved, reserved := old, old, old
	renewed.ModRevision, renewed.LeaseID = 2, 2
	moved.Host = "b"
	reserved.LeaseID = 0
	for _, test := range []struct {
		name string
		now  subnet.Record
		want bool
	}{{"moved", moved, false}, {"reserved", reserved, false}, {"renewed", renewed, true}} {
		if got := sameLease(old, test.now); got != test.want {
			t.Errorf("%s: same %v, want %v", test.name, got, test.want)
		}
	}
}
