package integration

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEtcdAwayWhileHostRestarts kills a host's overlayd and starts it again while etcd cannot be reached, be it that it
// refuses or that it swallows: the host comes up from its cache, its peers are reachable, and ADD and DEL work.
func TestEtcdAwayWhileHostRestarts(t *testing.T) {
	t.Parallel()
	for _, how := range []string{swallowed, refused} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h, keys := r.hosts[0], r.keys()
			h.waitCached(1)
			h.loseEtcd(how)
			h.Daemon.Stop(syscall.SIGKILL)
			r.stream.Pass(250)
			h.Start()
			measure(t, "ready from the cache", 5*time.Second, h.WaitReady)
			h.WaitPeers(1)
			s := h.waitProblem("etcd")
			if !s.Degraded || s.Etcd.Connected || !strings.Contains(s.Stage, "as last seen") {
				t.Errorf("status without etcd: %+v", s)
			}
			late := h.NewContainer()
			if err := pingAll(late, r.b); err != nil {
				t.Error(err)
			}
			late.Detach()
			h.logs("etcd does not answer: coming up with the leases as they were last seen")
			h.counted("etcd")
			h.findEtcd()
			measure(t, "etcd is followed again", 10*time.Second, func() { r.well(t, keys...) })
		})
	}
}

// TestEtcdAwayAfterReboot makes the host's namespace anew, as a reboot does, while etcd is away.
func TestEtcdAwayAfterReboot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h, keys := r.hosts[0], r.keys()
	h.waitCached(1)
	h.Daemon.Stop(syscall.SIGKILL)
	r.stream.stopQuietly()
	r.etcd.freeze()
	h.reboot(r.wire, 11)
	h.Start()
	measure(t, "ready from the cache", 5*time.Second, h.WaitReady)
	h.WaitPeers(1)
	h.waitProblem("etcd")
	r.a = h.NewContainer()
	r.stream = NewStream(r.a, r.b)
	r.etcd.thaw()
	r.well(t, keys...)
}

// reboot makes the host's namespace anew. Only what is on its disk is left.
func (h *Host) reboot(s *Segment, number int) {
	h.t.Helper()
	run(h.t, "ip", "netns", "delete", h.Name)
	eventually(h.t, "the old links are gone", func() error { // the kernel takes its time
		if _, err := s.Try("ip", "link", "show", fmt.Sprintf("p%d", number)); err == nil {
			return fmt.Errorf("port %d is there", number)
		}
		return nil
	})
	run(h.t, "ip", "netns", "add", h.Name)
	h.Exec("ip", "link", "set", "lo", "up")
	s.Plug(h.Node, "eth0", number)
	s.DefaultRoute(h.Node, "eth0")
	if err := os.RemoveAll(h.RunDir); err != nil { // a tmpfs
		h.t.Fatal(err)
	}
}

// TestEtcdAwayLongerThanTTL has etcd frozen until every lease has expired.
func TestEtcdAwayLongerThanTTL(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--lease-ttl=10s")
	keys := r.keys()
	r.etcd.freeze()
	frozen := time.Now()
	for _, h := range r.hosts {
		if s := h.waitProblem("does not answer"); !s.Ready || !s.Degraded {
			t.Errorf("status without etcd: %+v", s)
		}
	}
	time.Sleep(time.Until(frozen.Add(shortTTL + 5*time.Second)))
	late := r.hosts[0].NewContainer()
	if err := pingAll(late, r.b); err != nil {
		t.Error(err)
	}
	r.etcd.thaw()
	measure(t, "leases that expired are held again", 10*time.Second, func() { r.well(t, keys...) })
}
