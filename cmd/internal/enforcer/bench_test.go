package enforcer

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// crowd is what etcd holds of hosts with 250 containers each: its endpoints, of a thousand applications, and its leases.
func crowd(hosts int) (news etcdstore.News, leases map[string]*subnet.Record) {
	news.Listed, leases = true, map[string]*subnet.Record{}
	for i := range hosts {
		id := fmt.Sprintf("%032x", i)
		net := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i>>8 + 1), byte(i), 0}), 24)
		leases[fmt.Sprint(net)] = lease(id, net.String(), int64(i+1))
		for j := range 250 {
			a := net.Addr().As4()
			a[3] = byte(j + 2)
			ip := netip.AddrFrom4(a)
			n := i*250 + j
			news.Put = append(news.Put, etcdstore.KeyValue{
				Key:     etcdstore.EndpointDir + policy.EndpointKey("crowd", id, ip),
				Value:   []byte(endpoint(fmt.Sprintf("c%d-%d", i, j), ip.String(), map[string]string{"app": fmt.Sprint("a", n%1000), "tier": fmt.Sprint("t", j%7)})),
				LeaseID: int64(i + 1), ModRevision: int64(n),
			})
		}
	}
	return news, leases
}

func inUse() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkPeers is what a host that enforces 1,000 policies makes of a list of 30,000 endpoints of other hosts, and how much of it
// stays in the heap; leases come before that, or after it.
func BenchmarkPeers(b *testing.B) {
	for _, first := range []string{"leases", "endpoints"} {
		b.Run(fmt.Sprintf("policies=1000/endpoints=30000/first=%s", first), func(b *testing.B) {
			policies := map[string]policy.Policy{}
			for i := range 1000 {
				p := allow(fmt.Sprint("p", i), "web", "")
				p.Spec.Ingress = []policy.IngressRule{{Ports: []policy.Port{{Protocol: policy.TCP, Port: 80}}, From: []policy.Peer{{
					NamespaceSelector: &policy.Selector{}, PodSelector: &policy.Selector{MatchLabels: map[string]string{"app": fmt.Sprint("a", i)}}}}}}
				policies[p.Key()] = p
			}
			web := &compile.Endpoint{Local: true, Endpoint: policy.Endpoint{IPs: []netip.Addr{netip.MustParseAddr("10.240.0.2")},
				Identity: policy.Identity{Namespace: "default", Name: "web", Labels: map[string]string{"app": "web"}}}}
			news, leases := crowd(120)
			var grown float64
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				before := inUse()
				c := compile.New()
				c.SetPolicies(policies, nil)
				c.SetEndpoint("web", web)
				c.Flush()
				p := newPeers(c, nameless{}, func(refusal) {})
				b.StartTimer()
				if first == "endpoints" {
					p.hear(news, "own")
				}
				p.take(leases)
				if first == "leases" {
					p.hear(news, "own")
				}
				c.Flush()
				b.StopTimer()
				if known, refused := p.number(); known != len(news.Put) || refused != 0 {
					b.Fatalf("%d count, %d do not", known, refused)
				}
				grown = inUse() - before
				runtime.KeepAlive(c)
				runtime.KeepAlive(p)
				b.StartTimer()
			}
			b.ReportMetric(grown/1e6, "MB")
			runtime.KeepAlive(news)
		})
	}
}
