package etcdstore

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkPasswordHerd is 300 hosts of one user that start in one moment, as after a power cut: how long until all hold
// a lease, and what their password costs etcd then, and later, when each renews every 3 s.
func BenchmarkPasswordHerd(b *testing.B) {
	const many, ttl, window, allow = 300, 10 * time.Second, 10 * time.Second, 5 * time.Minute
	for b.Loop() {
		etcd := startDebianEtcd(b)
		etcd.put(b, prefix+"/config", `{"Network":"10.0.0.0/8","SubnetLen":24}`)
		enableAuth(b, etcd.server, "secret", clientv3.PermissionType(clientv3.PermReadWrite))
		file := filepath.Join(b.TempDir(), "password")
		writeFile(b, file, "secret")
		var l logins
		begin, before := time.Now(), etcd.cpu(b)
		hosts := make([]*host, many)
		for i := range hosts {
			addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String()
			hosts[i] = join(b, l.user(b, etcd.endpoint, file), JoinConfig{HostID: fmt.Sprint("h", i), TTL: ttl}, addr)
		}
		for _, h := range hosts {
			for !h.holds() {
				if time.Since(begin) > allow {
					b.Fatalf("%s holds nothing after %d logins", h.cfg.HostID, l.Load())
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/all-hold")
		b.ReportMetric(float64(l.Load()), "logins")
		b.ReportMetric((etcd.cpu(b) - before).Seconds(), "etcd-s/start")
		before = etcd.cpu(b)
		time.Sleep(window)
		b.ReportMetric((etcd.cpu(b) - before).Seconds(), "etcd-s/10s-after")
		b.ReportMetric(float64(l.Load()), "logins-after")
		for _, h := range hosts {
			h.stop()
		}
	}
}

func (h *host) holds() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last.Own.State == Held
}
