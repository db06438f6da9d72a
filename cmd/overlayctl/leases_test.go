package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
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
