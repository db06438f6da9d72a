package names

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/time/rate"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

// crowd is 30,000 endpoints of 300 hosts, in ten namespaces; a third are of services.
func (s *Server) crowd(b *testing.B) (keys []string) {
	leases := map[string]*subnet.Record{}
	for h := range 300 {
		host := fmt.Sprintf("host%d", h)
		leases[host] = &subnet.Record{Lease: subnet.Lease{HostID: host, Endpoints: []subnet.Endpoint{{
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 6 + byte(h>>8), byte(h), 0}), 24), PublicIP: netip.MustParseAddr("198.51.100.1")}}}}
		for i := range 100 {
			labels := map[string]string{"app": "web", "tier": "front"}
			if i%3 == 0 {
				labels = map[string]string{"com.docker.compose.service": fmt.Sprintf("svc%d", h), "com.docker.compose.project": "shop"}
			}
			ep := policy.Endpoint{Identity: policy.Identity{Namespace: fmt.Sprint("ns", i%10), Name: fmt.Sprintf("web-%d-%d", h, i), Labels: labels},
				IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 6 + byte(h>>8), byte(h), byte(i + 2)})}}
			keys = append(keys, s.put(host, int64(h*100+i+1), ep))
		}
	}
	s.Peers(leases)
	s.Known([]string{everything})
	return keys
}

func queryOf(b *testing.B, i int) []byte {
	m := new(dns.Msg)
	m.SetQuestion(fmt.Sprintf("web-%d-%d.ns%d.overlay.", i/100%300, i%100, i%100%10), dns.TypeA)
	m.SetEdns0(1232, false)
	data, err := m.Pack()
	if err != nil {
		b.Fatal(err)
	}
	return data
}

// BenchmarkAnswer is what a question for one of 30,000 names takes, without the socket, and what they take of memory.
func BenchmarkAnswer(b *testing.B) {
	s := newTestServer(b)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s.crowd(b)
	runtime.GC()
	runtime.ReadMemStats(&after)
	queries := make([][]byte, 30000)
	for i := range queries {
		queries[i] = queryOf(b, i)
	}
	i := 0
	from := asker{addr: netip.MustParseAddr("10.5.1.2")}
	b.ReportAllocs()
	for b.Loop() {
		answer, _ := s.handle(b.Context(), queries[i%len(queries)], from, false)
		if i++; answer == nil || answer[3]&0xf != 0 || answer[7] != 1 {
			b.Fatalf("%d: %x", i, answer)
		}
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
}

// BenchmarkServe is the same by UDP on one core, which who asks has too: questions a second with 64 of them on the way, while a
// thousand names a second change, and how long one alone takes.
func BenchmarkServe(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	s := newTestServer(b)
	keys := s.crowd(b)
	s.port = freePort(b)
	at := netip.MustParseAddr("127.0.0.1")
	s.limits.of(at).heard = rate.NewLimiter(rate.Inf, 0) // no container asks for so much
	l, err := s.open(b.Context(), gateway{at, loopback, netip.PrefixFrom(at, 8)})
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, s.port)))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			for j := range 10 {
				key := keys[(i*10+j)%len(keys)]
				s.Revise(key, int64(100000+i))
			}
		}
	}()
	buf := make([]byte, 4096)
	ask := func(i int) {
		if _, err := conn.Write(queryOf(b, i)); err != nil {
			b.Fatal(err)
		}
	}
	take := func() {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := conn.Read(buf); err != nil || n < headerLen || buf[3]&0xf != 0 {
			b.Fatalf("%v: %x", err, buf[:max(n, 0)])
		}
	}
	const window = 64
	asked, taken := 0, 0
	for b.Loop() {
		if asked++; asked > window {
			take()
			taken++
		}
		ask(asked)
	}
	for ; taken < asked; taken++ {
		take()
	}
	b.ReportMetric(float64(asked)/b.Elapsed().Seconds(), "q/s")
	var took []time.Duration
	for i := range 10000 {
		start := time.Now()
		ask(i)
		take()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
