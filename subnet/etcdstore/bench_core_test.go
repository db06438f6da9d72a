package etcdstore

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/subnet"
)

const wideNetwork = `{"Network":"10.0.0.0/8","SubnetLen":24}`

// BenchmarkLostRace is what a claim costs etcd that another host was faster with, by the number of leases.
func BenchmarkLostRace(b *testing.B) {
	const times = 200
	for _, leases := range []int{1000, 10_000, 60_000} {
		b.Run(fmt.Sprint(leases), func(b *testing.B) {
			etcd := startProcess(b)
			rev := etcd.put(b, prefix+"/config", wideNetwork)
			putMany(b, etcd.server, leases)
			s := openStore(b, etcd.endpoint)
			client, err := s.client.dial(b.Context(), etcd.endpoint)
			if err != nil {
				b.Fatal(err)
			}
			defer client.Close()
			c := benchConn(client)
			w := writer{store: s}
			for b.Loop() {
				before, begin := etcd.cpu(b), time.Now()
				for range times {
					if r := w.commit(b.Context(), c, &write{key: "10.0.1.0-24", value: []byte("x")}, rev); !r.lost || r.newer == 0 {
						b.Fatalf("%+v", r)
					}
				}
				b.ReportMetric(float64(time.Since(begin).Microseconds())/times, "µs/lost-race")
				b.ReportMetric(float64((etcd.cpu(b)-before).Microseconds())/times, "etcd-µs/lost-race")
			}
		})
	}
}

// BenchmarkRefusedConfig is what an event costs a host whose network config in etcd is refused, beside one whose is not.
func BenchmarkRefusedConfig(b *testing.B) {
	const leases, times = 60_000, 200
	for _, refused := range []bool{false, true} {
		b.Run(fmt.Sprintf("refused=%t", refused), func(b *testing.B) {
			etcd := startProcess(b)
			etcd.put(b, prefix+"/config", wideNetwork)
			putMany(b, etcd.server, leases)
			h := join(b, storeOf(b, Config{Endpoints: []string{etcd.endpoint}}, slog.New(slog.DiscardHandler)), JoinConfig{HostID: "h1"}, "192.0.2.1")
			h.await("knows all", func(u Update) bool { return u.Own.State == Held && len(h.peers) == leases })
			if refused {
				etcd.put(b, prefix+"/config", strings.Replace(wideNetwork, "10.", "11.", 1))
				h.await("refuses", func(u Update) bool { return u.Err != nil })
			}
			const key = "10.254.0.0-24"
			var took []time.Duration
			for b.Loop() {
				for i := range times {
					begin := time.Now()
					rev := etcd.put(b, subnets+key, hostValue("x", fmt.Sprintf("198.19.%d.%d", i/250, i%250+1)))
					for {
						h.mu.Lock()
						seen := h.peers[key].ModRevision
						h.mu.Unlock()
						if seen >= rev {
							break
						}
						time.Sleep(20 * time.Microsecond)
					}
					took = append(took, time.Since(begin))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/event-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/event-p99")
		})
	}
}

// BenchmarkCompaction is 60 hosts beside 10,000 leases on an etcd whose other users write and compact, cut off at once:
// how many list anew, how long until all are back, and what that costs etcd.
func BenchmarkCompaction(b *testing.B) {
	const leases, many = 10_000, 60
	for b.Loop() {
		etcd := startProcess(b)
		etcd.put(b, prefix+"/config", wideNetwork)
		putMany(b, etcd.server, leases)
		p := startProxy(b, strings.TrimPrefix(etcd.endpoint, "http://"))
		var log counter
		s := storeOf(b, Config{Endpoints: []string{p.endpoint()}}, log.logger())
		hosts := make([]*host, many)
		for i := range hosts {
			hosts[i] = newHost(b, s, JoinConfig{HostID: fmt.Sprint("h", i)})
			hosts[i].mirror.most = silence // so that the benchmark takes no minutes
			hosts[i].start()
			hosts[i].Advertise(advert(fmt.Sprintf("198.100.0.%d", i+1)))
		}
		for _, h := range hosts {
			h.awaitHeld("")
		}
		var rev int64
		for i := range 1200 {
			rev = etcd.put(b, fmt.Sprint("/registry/x", i%10), "y")
		}
		time.Sleep(2*silence + time.Second)
		etcd.put(b, "/registry/x", "y")
		if _, err := etcd.raw.Compact(b.Context(), rev); err != nil {
			b.Fatal(err)
		}
		before := etcd.cpu(b)
		p.set(refuse)
		for _, h := range hosts {
			h.await("is cut off", func(u Update) bool { return !u.Connected })
		}
		begin := time.Now()
		p.set(pass)
		for _, h := range hosts {
			h.await("is back", func(u Update) bool { return u.Connected })
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/back")
		b.ReportMetric(float64(log.count("listing the leases anew")), "lists")
		b.ReportMetric((etcd.cpu(b) - before).Seconds(), "etcd-s")
		for _, h := range hosts {
			h.stop()
		}
	}
}

// BenchmarkNetworkChange is 600 hosts whose network gets another VNI: until all have written it, and what etcd, which
// tells all of each, pays for it, in all and at most in a second.
func BenchmarkNetworkChange(b *testing.B) {
	const many = 600
	for b.Loop() {
		etcd := startProcess(b)
		etcd.put(b, prefix+"/config", wideNetwork)
		hosts := etcd.members(b, many, 0)
		for _, h := range hosts {
			for len(h.peerKeys()) < many-1 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		var done atomic.Bool
		most := make(chan float64)
		go func() {
			worst := 0.0
			for !done.Load() {
				before, begin := etcd.cpu(b), time.Now()
				time.Sleep(time.Second)
				worst = max(worst, (etcd.cpu(b)-before).Seconds()/time.Since(begin).Seconds())
			}
			most <- worst
		}()
		before, begin := etcd.cpu(b), time.Now()
		for i, h := range hosts {
			l := advert(fmt.Sprintf("198.18.%d.%d", i>>8, i&255), fmt.Sprintf("2001:db8::%x", i+1))
			for e := range l.Endpoints {
				l.Endpoints[e].Data = []byte(`{"VNI":2,"VtepMAC":"5e:96:93:0f:50:82"}`)
			}
			h.Advertise(l)
		}
		for _, h := range hosts {
			h.await("says so", func(u Update) bool { return says(u.Own.Record.Lease, `"VNI":2`) })
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/changed")
		b.ReportMetric((etcd.cpu(b) - before).Seconds(), "etcd-s")
		done.Store(true)
		b.ReportMetric(<-most, "etcd-cores/at-most")
		for _, h := range hosts {
			h.stop()
		}
	}
}

func says(l subnet.Lease, text string) bool {
	return len(l.Endpoints) > 0 && strings.Contains(string(l.Endpoints[0].Data), text)
}

func benchConn(client *clientv3.Client) *conn {
	c := &conn{Client: client, patience: new(atomic.Int64)}
	c.patience.Store(int64(requestTimeout))
	return c
}
