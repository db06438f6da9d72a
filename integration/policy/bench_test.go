package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/overlayd/overlayd/subnet"
)

// prefix is flannel's, under which everything is in etcd.
const prefix = "/coreos.com/network/"

// crowdNetwork has room for 1,200 hosts of 250 containers, and the real ones' subnets elsewhere.
const crowdNetwork = `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.240.0.0","EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}}`

// perHost is how many containers a host of the crowd has.
const perHost = 250

// client talks to the rig's etcd.
func (r *rig) client() *clientv3.Client {
	r.t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://127.0.0.1:2379"}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (conn net.Conn, err error) {
			err = r.etcd.do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
				return err
			})
			return conn, err
		})},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// crowd puts hosts into etcd that are not there, with containers of the namespace crowd, whose label app is one of a thousand.
func (r *rig) crowd(c *clientv3.Client, containers int) {
	r.t.Helper()
	ctx := context.Background()
	lease, err := c.Grant(ctx, 3600)
	if err != nil {
		r.t.Fatal(err)
	}
	var ops []clientv3.Op
	put := func(key, value string) { ops = append(ops, clientv3.OpPut(key, value, clientv3.WithLease(lease.ID))) }
	for i := range (containers + perHost - 1) / perHost {
		id := fmt.Sprintf("crowd%d", i)
		net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i>>8 + 1), byte(i), 0}), 24)
		l := subnet.Lease{Backend: "vxlan", HostID: id, Host: id, Endpoints: []subnet.Endpoint{{Subnet: net,
			PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Data: json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:01:00:00:%02x:%02x"}`, i>>8, i&255))}}}
		raw, err := l.Value()
		if err != nil {
			r.t.Fatal(err)
		}
		put(prefix+"subnets/"+l.Key(), string(raw))
		for j := range min(perHost, containers-i*perHost) {
			a := net.Addr().As4()
			a[3] = byte(j + 2)
			addr := netip.AddrFrom4(a)
			put(fmt.Sprintf("%soverlayd/endpoints/crowd/%s/%s", prefix, id, addr), fmt.Sprintf(
				`{"ips":[%q],"name":"c%d-%d","labels":{"app":"a%d","tier":"t%d"}}`, addr, i, j, (i*perHost+j)%1000, j%7))
		}
	}
	for some := range slices.Chunk(ops, 128) {
		if _, err := c.Txn(ctx).Then(some...).Commit(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// thousandPeers are count policies that let those of one label of the crowd reach web.
func thousandPeers(count int) string {
	var docs strings.Builder
	for i := range count {
		docs.WriteString(netpolText("dev", fmt.Sprintf("p%03d", i), fmt.Sprintf(
			"{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: a%d}}}], ports: [{port: 80}, {protocol: UDP, port: %d}]}]}", i, floodPort)))
	}
	return docs.String()
}

func quantile(d []time.Duration, q float64) float64 {
	slices.Sort(d)
	return float64(d[int(q*float64(len(d)-1))]) / float64(time.Millisecond)
}

// BenchmarkPut measures from the put of a container's labels, or of a policy, into a real etcd until the first packet passes that
// was not let through before, beside a crowd of other containers. Of that, what etcd takes by itself is reported as etcd.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{10, 30_000, 300_000} {
		b.Run(fmt.Sprintf("endpoints=%d", size), func(b *testing.B) {
			b.Setenv("TMPDIR", "/dev/shm") // disks are not what is measured
			r := newRigOf(b, crowdNetwork)
			c := r.client()
			web := r.newPod(r.hosts[0], "dev", "web", map[string]string{"app": "web"})
			far := r.newPod(r.hosts[1], "crowd", "far", map[string]string{"app": "a999"}) // some policy means it, so that it is in etcd
			r.crowd(c, size)
			r.must(thousandPeers(1000), "policy", "apply", "-f", "-")
			s := web.sink(b, floodPort)
			key, was := r.published(c, far)
			relabel := func(app string) func() {
				return func() {
					value := strings.Replace(string(was.Value), `"a999"`, strconv.Quote(app), 1)
					if _, err := c.Put(context.Background(), key, value, clientv3.WithLease(clientv3.LeaseID(was.Lease))); err != nil {
						b.Error(err)
					}
				}
			}
			relabel("none")()
			b.ResetTimer()
			var took, bare []time.Duration
			bare = r.untilHeard(c, key, relabel)
			for i := range 300 {
				r.untilClosed(far, web, s)
				took = append(took, untilPassed(relabel(fmt.Sprintf("a%d", i)), far, web, s))
				relabel("none")()
			}
			b.ReportMetric(quantile(bare, 0.5), "ms/p50-etcd")
			b.ReportMetric(quantile(bare, 0.99), "ms/p99-etcd")
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(quantile(took, 0.5), "ms/p50-label")
			b.ReportMetric(quantile(took, 0.99), "ms/p99-label")
			took = nil
			policy := prefix + "overlayd/policy/dev/p000"
			reply, err := c.Get(context.Background(), policy)
			if err != nil || len(reply.Kvs) != 1 {
				b.Fatalf("%s: %v", policy, err)
			}
			closed := string(reply.Kvs[0].Value)
			write := func(value string) func() {
				return func() {
					if _, err := c.Put(context.Background(), policy, value); err != nil {
						b.Error(err)
					}
				}
			}
			for range 100 {
				r.untilClosed(far, web, s)
				took = append(took, untilPassed(write(strings.Replace(closed, `"a0"`, `"none"`, 1)), far, web, s))
				write(closed)()
			}
			b.ReportMetric(quantile(took, 0.5), "ms/p50-policy")
			b.ReportMetric(quantile(took, 0.99), "ms/p99-policy")
		})
	}
}

// kv is what etcd has of an endpoint.
type kv struct {
	Value []byte
	Lease int64
}

// published waits until a container is in etcd, and returns its key.
func (r *rig) published(c *clientv3.Client, p *pod) (key string, found kv) {
	r.t.Helper()
	eventually(r.t, p.key()+" is published", func() error {
		reply, err := c.Get(context.Background(), prefix+"overlayd/endpoints/"+p.ns+"/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		for _, k := range reply.Kvs {
			if strings.HasSuffix(string(k.Key), "/"+p.addrs[v4].String()) {
				key, found = string(k.Key), kv{k.Value, k.Lease}
				return nil
			}
		}
		return fmt.Errorf("not among %d", len(reply.Kvs))
	})
	return key, found
}

// untilPassed does something and sends all the time; it returns how long it took until something came.
func untilPassed(do func(), from, to *pod, s *sink) (took time.Duration) {
	before := s.count.Load()
	begin := time.Now()
	go do()
	from.agent.do(func() {
		for s.count.Load() == before && time.Since(begin) < patience {
			sendOnce(to.addrs[v4], floodPort)
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil) // time.Sleep takes 1 ms where nothing else is to be done
		}
		took = time.Since(begin)
	})
	return took
}

// untilHeard does puts, and returns how long each took until a watch of the key, by who put it, told of it: that is etcd's part.
func (r *rig) untilHeard(c *clientv3.Client, key string, relabel func(app string) func()) (took []time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	heard := c.Watch(ctx, key, clientv3.WithCreatedNotify())
	<-heard
	for range 300 {
		begin := time.Now()
		go relabel("none")()
		<-heard
		took = append(took, time.Since(begin))
		time.Sleep(5 * time.Millisecond)
	}
	return took
}

// untilClosed waits until nothing comes any more.
func (r *rig) untilClosed(from, to *pod, s *sink) {
	for {
		before := s.count.Load()
		from.agent.do(func() { sendOnce(to.addrs[v4], floodPort) })
		time.Sleep(5 * time.Millisecond)
		if s.count.Load() == before {
			return
		}
	}
}
