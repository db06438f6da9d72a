package etcdstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/overlayd/overlayd/subnet/etcdembed"
)

// serveDir tells a copy of the test binary to serve etcd from there until its standard input ends.
const serveDir = "ETCDSTORE_SERVE_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(serveDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := etcdembed.Start(context.Background(), etcdembed.Config{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.Endpoint())
	bufio.NewReader(os.Stdin).ReadByte() // never comes
	s.Close()
}

// process is an etcd in a process of its own, so that what it costs can be told apart.
type process struct {
	*server
	pid      int
	endpoint string
}

func startProcess(b *testing.B) *process {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveDir+"="+b.TempDir())
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(line, err)
	}
	p := &process{pid: cmd.Process.Pid, endpoint: strings.TrimSpace(line)}
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{p.endpoint}, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(line, err)
	}
	b.Cleanup(func() { raw.Close() })
	p.server = &server{raw: raw}
	return p
}

// cpu is the time that the process has used, from proc_pid_stat(5).
func (p *process) cpu(b *testing.B) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(after) // from the 3rd on
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	return time.Duration(user+system) * time.Second / 100 // USER_HZ
}

// memory is the resident set in bytes.
func (p *process) memory(b *testing.B) int {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// members joins n hosts.
func (p *process) members(b *testing.B, n int, ttl time.Duration) []*host {
	b.Helper()
	s := storeOf(b, Config{Endpoints: []string{p.endpoint}}, slog.New(slog.DiscardHandler))
	hosts := make([]*host, n)
	for i := range hosts {
		addr := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String()
		hosts[i] = join(b, s, JoinConfig{HostID: fmt.Sprint("h", i), TTL: ttl}, addr, fmt.Sprintf("2001:db8::%x", i+1))
	}
	return hosts
}

// BenchmarkClaim is 256 hosts that claim the 255 subnets of a network in one moment: how long until the last has one,
// and until the one that has none gets the first that is released.
func BenchmarkClaim(b *testing.B) {
	const many = 256
	for name, config := range map[string]string{
		"IPv4": fmt.Sprintf(`{"Network":"10.5.0.0/%d","SubnetLen":24}`, 24-bits.Len(many-1)),
		"dual": fmt.Sprintf(`{"Network":"10.5.0.0/%d","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd00:5::/56"}`, 24-bits.Len(many-1)),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				etcd := startProcess(b)
				hosts := etcd.members(b, many, 0)
				for _, h := range hosts {
					h.await("waits for a config", func(u Update) bool { return errors.Is(u.Err, ErrNoNetwork) })
				}
				b.StartTimer()
				begin := time.Now()
				etcd.put(b, prefix+"/config", config)
				claimed := claimAll(b, hosts)
				b.ReportMetric(claimed.at.Sub(begin).Seconds(), "s/255-claims")
				begin = time.Now()
				etcd.del(b, subnets+claimed.someKey)
				claimed.loser.awaitHeld(claimed.someKey)
				b.ReportMetric(1000*time.Since(begin).Seconds(), "ms/released")
				b.StopTimer()
				for _, h := range hosts {
					h.stop()
				}
				b.StartTimer()
			}
		})
	}
}

type claimed struct {
	at      time.Time
	loser   *host
	someKey string // its host is gone
}

// claimAll waits until all hosts but one hold a lease, and that one says why it has none.
func claimAll(b *testing.B, hosts []*host) (c claimed) {
	b.Helper()
	held := map[string]*host{}
	for _, h := range hosts {
		u := h.await("settles", func(u Update) bool {
			return u.Own.State == Held || strings.Contains(u.Own.Reason, "out of subnets")
		})
		if u.Own.State != Held {
			c.loser = h
			continue
		}
		c.someKey = u.Own.Record.Key()
		held[c.someKey] = h
	}
	c.at = time.Now()
	if len(held) != len(hosts)-1 || c.loser == nil {
		b.Fatalf("%d subnets are held by %d hosts", len(held), len(hosts))
	}
	held[c.someKey].stop()
	return c
}

// BenchmarkThousandHosts is what 1,000 hosts cost etcd that each hold a lease and watch.
func BenchmarkThousandHosts(b *testing.B) {
	const many, window, allow = 1000, 15 * time.Second, 5 * time.Minute
	for b.Loop() {
		etcd := startProcess(b)
		etcd.put(b, prefix+"/config", `{"Network":"10.0.0.0/8","SubnetLen":24}`)
		b.ReportMetric(float64(etcd.memory(b))/1e6, "MB/alone")
		begin, before := time.Now(), etcd.cpu(b)
		hosts := etcd.members(b, many, 0)
		for _, h := range hosts {
			for len(h.peerKeys()) < many-1 {
				if time.Since(begin) > allow {
					b.Fatalf("%s knows %d peers", h.cfg.HostID, len(h.peerKeys()))
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/joined")
		b.ReportMetric((etcd.cpu(b) - before).Seconds(), "etcd-s/joined")
		before = etcd.cpu(b)
		time.Sleep(window)
		b.ReportMetric(100*(etcd.cpu(b)-before).Seconds()/window.Seconds(), "%etcd-cpu/idle")
		b.ReportMetric(float64(etcd.memory(b))/1e6, "MB/idle")
		for _, h := range hosts {
			h.stop()
		}
	}
}

// BenchmarkUpkeep is what etcd pays for what a host asks while nothing happens: to renew its lease, and whether it is
// still the same etcd. It fails if that is an event.
func BenchmarkUpkeep(b *testing.B) {
	const times = 5000
	etcd := startProcess(b)
	etcd.put(b, prefix+"/config", network)
	h := etcd.members(b, 1, 0)[0]
	own := h.awaitHeld("").Own.Record
	h.stop() // from here on the test is the host
	client, err := h.mirror.client.dial(b.Context(), etcd.endpoint)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	over := benchConn(client)
	watch := client.Watch(b.Context(), subnets, clientv3.WithPrefix())
	for name, ask := range map[string]func() error{
		"progress": func() error { err := client.RequestProgress(b.Context()); <-watch; return err },
		"renewal":  func() error { _, err := keepAliveOnce(b.Context(), client, own.LeaseID); return err },
		"verify":   func() error { _, err := h.mirror.position.verify(b.Context(), over, 1); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				before, revision := etcd.cpu(b), etcd.revision(b)
				for range times {
					if err := ask(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((etcd.cpu(b)-before).Microseconds())/times, "etcd-µs/"+name)
				if now := etcd.revision(b); now != revision {
					b.Errorf("%d events", now-revision)
				}
			}
		})
	}
}

func (p *process) revision(b *testing.B) int64 {
	b.Helper()
	got, err := p.raw.Get(b.Context(), prefix)
	if err != nil {
		b.Fatal(err)
	}
	return got.Header.Revision
}
