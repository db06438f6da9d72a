package integration

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// crowds are the numbers of peers that are measured.
var crowds = []int{10, 1_000, 10_000, 60_000}

// eachCrowd runs f for both families with each number of peers.
func eachCrowd(b *testing.B, f func(b *testing.B, c *crowd)) {
	for _, s := range stacks[:2] {
		for _, size := range crowds {
			b.Run(fmt.Sprintf("%s/peers=%d", s.Name, size), func(b *testing.B) {
				b.Setenv("TMPDIR", "/dev/shm") // disks are not what is measured
				c := newCrowd(b, s.Stack, size)
				b.ResetTimer()
				f(b, c)
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// rounds is how often each of two is measured, in turn.
const rounds = 3

// BenchmarkStart measures from the start of the process until it is ready, against ip -batch and bridge -batch with the
// same objects on another host; the same without the fast path; and again on a host whose kernel is right already, which
// is an audit.
func BenchmarkStart(b *testing.B) {
	eachCrowd(b, func(b *testing.B, c *crowd) {
		var ours, theirs, slow, again, used, usedAgain []time.Duration
		ip, bridge := commands(c.host())
		for range rounds {
			h := c.host()
			theirs = append(theirs, batch(c.host(), ip, bridge))
			ours = append(ours, startTimed(h))
			used = append(used, cpu(h))
			h.Daemon.Stop(syscall.SIGKILL)
			without := c.host()
			slow = append(slow, startTimed(without, "--fast-path=off"))
			without.Daemon.Stop(syscall.SIGTERM)
			again = append(again, startTimed(h))
			usedAgain = append(usedAgain, cpu(h))
			h.Daemon.Stop(syscall.SIGTERM)
		}
		b.Logf("start %v, batch %v, without the fast path %v, again %v", ours, theirs, slow, again)
		b.ReportMetric(median(ours), "s/start")
		b.ReportMetric(median(theirs), "s/batch")
		b.ReportMetric(median(ours)/median(theirs), "start/batch")
		b.ReportMetric(median(slow), "s/start-no-fast-path")
		b.ReportMetric(median(used), "cpu-s/start")
		b.ReportMetric(median(again), "s/restart")
		b.ReportMetric(median(usedAgain), "cpu-s/restart")
	})
}

// BenchmarkEvent measures from the put of one more lease until the kernel tells of its route, and for comparison until
// a client that does nothing hears of the put.
func BenchmarkEvent(b *testing.B) {
	eachCrowd(b, func(b *testing.B, c *crowd) {
		h := c.host()
		h.Start()
		h.WaitReady()
		time.Sleep(2 * time.Second) // the files are written, garbage is collected
		var installed, heard []time.Duration
		routes := routeEvents(b, h)
		puts := c.client.Watch(b.Context(), subnetsPrefix, clientv3.WithPrefix())
		before := cpu(h)
		for range 300 {
			i, h := c.putOne(b, routes, puts)
			installed, heard = append(installed, i), append(heard, h)
			time.Sleep(5 * time.Millisecond)
		}
		milli := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		b.ReportMetric(milli(quantile(installed, 0.5)), "ms/p50")
		b.ReportMetric(milli(quantile(installed, 0.99)), "ms/p99")
		b.ReportMetric(milli(quantile(heard, 0.5)), "ms/p50-heard")
		b.ReportMetric(milli(quantile(heard, 0.99)), "ms/p99-heard")
		b.ReportMetric(milli(cpu(h)-before)/300, "cpu-ms/event")
	})
}

// putOne puts a lease and returns when its route came, and when the watch told of it.
func (c *crowd) putOne(b *testing.B, routes <-chan netip.Prefix, puts clientv3.WatchChan) (installed, heard time.Duration) {
	b.Helper()
	c.size++
	key, value := c.lease(c.size)
	begin := time.Now()
	go func() {
		if _, err := c.client.Put(context.Background(), key, value); err != nil {
			b.Error(err)
		}
	}()
	for installed == 0 || heard == 0 {
		select {
		case <-routes:
			installed = time.Since(begin)
		case <-puts:
			heard = time.Since(begin)
		case <-time.After(patience):
			b.Fatalf("%s: installed %v, heard %v", key, installed, heard)
		}
	}
	return installed, heard
}

// routeEvents tells of new routes on h.
func routeEvents(b *testing.B, h *Host) <-chan netip.Prefix {
	b.Helper()
	ns, err := netns.GetFromName(h.Name)
	if err != nil {
		b.Fatal(err)
	}
	updates, done := make(chan netlink.RouteUpdate), make(chan struct{})
	if err := netlink.RouteSubscribeAt(ns, updates, done); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { close(done); ns.Close() })
	added := make(chan netip.Prefix, 1)
	go func() {
		for u := range updates {
			if u.Type == unix.RTM_NEWROUTE && u.Dst != nil {
				p, _ := netip.ParsePrefix(u.Dst.String())
				added <- p
			}
		}
	}()
	return added
}

// BenchmarkMemory measures what the daemon has in memory when it is ready, and later.
func BenchmarkMemory(b *testing.B) {
	eachCrowd(b, func(b *testing.B, c *crowd) {
		h := c.host()
		startTimed(h)
		ready, _ := resident(h)
		time.Sleep(20 * time.Second)
		now, most := resident(h)
		b.ReportMetric(ready, "MB/ready")
		b.ReportMetric(now, "MB/later")
		b.ReportMetric(most, "MB/most")
	})
}

// BenchmarkCleanup measures how long --cleanup takes, and how long nobody else can change the network meanwhile, against
// ip with the same objects.
func BenchmarkCleanup(b *testing.B) {
	eachCrowd(b, func(b *testing.B, c *crowd) {
		var ours, theirs, blocked, blockedByIP []time.Duration
		ip, bridge := commands(c.host())
		for range rounds {
			h, other := c.host(), c.host()
			startTimed(h)
			h.Daemon.Stop(syscall.SIGTERM)
			batch(other, ip, bridge)
			probe := newLockProbe(c.Etcd)
			begin := time.Now()
			if out, code := h.Once("--cleanup"); code != 0 {
				b.Fatal(out)
			}
			ours = append(ours, time.Since(begin))
			blocked = append(blocked, probe.end())
			probe = newLockProbe(c.Etcd)
			begin = time.Now()
			other.Exec("sh", "-c", `ip -4 route flush proto 111 && ip -6 route flush proto 111 &&
				for link in $(ip -br link show type vxlan | cut -d' ' -f1); do ip link delete "$link"; done`)
			theirs = append(theirs, time.Since(begin))
			blockedByIP = append(blockedByIP, probe.end())
		}
		b.ReportMetric(median(ours), "s/cleanup")
		b.ReportMetric(median(theirs), "s/ip")
		b.ReportMetric(median(blocked), "s/blocked")
		b.ReportMetric(median(blockedByIP), "s/blocked-by-ip")
	})
}
