package policy

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimed starts a host's daemon and returns how long it took until it is ready, and what it has resident then and after a
// while, in bytes.
func (h *host) startTimed() (took time.Duration, resident int) {
	h.t.Helper()
	begin := time.Now()
	h.start()
	for {
		if ready, _ := h.getReady(); ready {
			break
		}
		if time.Since(begin) > patience {
			h.t.Fatal("not ready")
		}
		time.Sleep(2 * time.Millisecond)
	}
	took = time.Since(begin)
	time.Sleep(3 * time.Second)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.daemon.Pid()))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			resident, _ = strconv.Atoi(f[1])
		}
	}
	return took, resident << 10
}

func (h *host) getReady() (ready bool, err error) {
	err = h.do(func() error {
		c, err := net.DialTimeout("tcp", "127.0.0.1:9417", time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = c.Write([]byte("GET /readyz HTTP/1.0\r\n\r\n"))
		buf := make([]byte, 16)
		n, err := c.Read(buf)
		ready = strings.Contains(string(buf[:n]), " 200")
		return err
	})
	return ready, err
}

// BenchmarkPolicyStart measures the start of a daemon with 1,000 policies and 30,000 endpoints, in turn with none: what of both is
// the peers' is in both.
func BenchmarkPolicyStart(b *testing.B) {
	b.Setenv("TMPDIR", "/dev/shm")
	r := newRigOf(b, crowdNetwork)
	c := r.client()
	r.crowd(c, 30_000)
	r.newPod(r.hosts[0], "dev", "web", map[string]string{"app": "web"})
	h := r.hosts[0]
	var with, without []time.Duration
	var bytes, bytesWithout []int
	restart := func(took *[]time.Duration, resident *[]int) {
		h.daemon.Stop(syscall.SIGTERM)
		t, n := h.startTimed()
		*took, *resident = append(*took, t), append(*resident, n)
	}
	for range 5 {
		restart(&without, &bytesWithout)
		r.must(thousandPeers(1000), "policy", "apply", "-f", "-")
		restart(&with, &bytes)
		out := r.must("", "policy", "list", "-n", "dev", "-o", "yaml")
		r.must(out, "policy", "delete", "-f", "-")
	}
	slices.Sort(bytes)
	slices.Sort(bytesWithout)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(with, 0.5), "ms/start")
	b.ReportMetric(quantile(without, 0.5), "ms/start-without")
	b.ReportMetric(float64(bytes[2])/1e6, "MB")
	b.ReportMetric(float64(bytesWithout[2])/1e6, "MB-without")
}

// BenchmarkAdd measures ADD and DEL of a container on a host that enforces, in turn with one of before it did.
func BenchmarkAdd(b *testing.B) {
	b.Setenv("TMPDIR", "/dev/shm")
	r := newRig(b)
	var with, without []time.Duration
	add := func(took *[]time.Duration) {
		p := r.plainPod(r.hosts[0], "dev", "new", map[string]string{"app": "web"})
		begin := time.Now()
		p.attach()
		*took = append(*took, time.Since(begin))
		p.detach()
	}
	for range 5 {
		for range 5 {
			add(&without)
		}
		r.must(netpolText("dev", "p", denyAll), "policy", "apply", "-f", "-")
		time.Sleep(300 * time.Millisecond)
		for range 5 {
			add(&with)
		}
		r.must("", "policy", "delete", "-n", "dev", "p")
		time.Sleep(300 * time.Millisecond)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(with, 0.5), "ms/add")
	b.ReportMetric(quantile(without, 0.5), "ms/add-without")
	b.ReportMetric(quantile(with, 0.9), "ms/add-p90")
	b.ReportMetric(quantile(without, 0.9), "ms/add-without-p90")
}
