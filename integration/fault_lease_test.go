package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// expire cuts a host from etcd until its lease has expired.
func (r *rig) expire(t *testing.T, h *Host) {
	t.Helper()
	key := h.key()
	h.loseEtcd(swallowed)
	eventually(t, "the lease expires", func() error {
		if value, there := r.Keys(subnetsPrefix)[key]; there {
			return fmt.Errorf("it is there: %s", value)
		}
		return nil
	})
}

// TestLeaseExpiresBehindPartition: nobody takes the subnet, so the host gets it again.
func TestLeaseExpiresBehindPartition(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--lease-ttl=10s")
	h, keys := r.hosts[0], r.keys()
	r.expire(t, h)
	r.hosts[1].WaitPeers(0)
	r.stream.stopQuietly() // the peer believes that the host is gone
	h.WaitPeers(1)
	h.NewContainer() // which goes on as if nothing was
	h.findEtcd()
	measure(t, "the lease is held again", 10*time.Second, func() { r.hosts[1].WaitPeers(1) })
	r.stream = NewStream(r.a, r.b)
	h.counted("lost")
	r.well(t, keys...)
}

// TestLeaseTakenBehindPartition: another host takes the subnet. It is left alone, containers are refused with the
// reason, and those that are there go on. When the last one is gone the host gets another subnet.
func TestLeaseTakenBehindPartition(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--lease-ttl=10s")
	h, key := r.hosts[0], r.hosts[0].key()
	neighbour := h.NewContainer()
	r.expire(t, h)
	r.stream.stopQuietly()
	r.Put(key, fakeValue(77))
	h.findEtcd()
	s := h.waitProblem("belongs to", "172.30.1.77")
	if !s.Ready || !s.Degraded || s.Lease.State != "taken" || !strings.Contains(s.Stage, "no new containers") {
		t.Errorf("status of a host whose subnet is taken: %+v", s)
	}
	h.logs("the host's subnet is taken", "172.30.1.77")
	h.counted("taken")
	h.refuses(t, "172.30.1.77")
	if err := pingAll(r.a, neighbour); err != nil {
		t.Errorf("local traffic: %v", err)
	}
	time.Sleep(15 * time.Second) // longer than the host waits before it looks for containers
	if s := h.waitProblem("belongs to"); s.Lease.State != "taken" {
		t.Errorf("the host gave its subnet up while containers have it: %+v", s)
	}
	if value := r.Keys(subnetsPrefix)[key]; value != fakeValue(77) {
		t.Errorf("the other host's lease was written over with %s", value)
	}

	r.a.Detach()
	neighbour.Detach()
	measure(t, "another subnet", 5*time.Second, func() { h.waitWell() })
	if h.key() == key {
		t.Error("the host has the subnet that it lost")
	}
	r.Delete(key)
	for _, h := range r.hosts {
		h.WaitPeers(1)
	}
	r.a.Attach()
	for _, pair := range [][2]*Container{{r.a, r.b}, {r.b, r.a}} {
		if err := pingAll(pair[0], pair[1]); err != nil {
			t.Error(err)
		}
	}
}

// refuses checks that containers are refused with a reason, and that those that are there can be taken away.
func (h *Host) refuses(t *testing.T, reason string) {
	t.Helper()
	c := newNode(t, h.Name+"-refused")
	if out, err := h.cnitool("add", c.Path()); err == nil || !strings.Contains(err.Error(), reason) {
		t.Errorf("ADD = %v, want a refusal that names %s:\n%s", err, reason, out)
	}
	if _, err := h.cnitool("del", c.Path()); err != nil {
		t.Errorf("DEL while ADD is refused: %v", err)
	}
	if _, err := os.Stat(h.SubnetFile()); err == nil {
		t.Error("subnet.env still offers the subnet")
	}
	if b, err := os.ReadFile(filepath.Join(h.RunDir, "subnet.refused")); err != nil || !strings.Contains(string(b), reason) {
		t.Errorf("subnet.refused: %q, %v", b, err)
	}
}

// TestOwnValueTaken has another host's value put over a host's own while all is well.
func TestOwnValueTaken(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"overlayd": strings.Replace(fakeValue(77), "}}", `},"HostID":"other","Host":"other-host"}`, 1),
		"flannel":  fakeValue(77),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h, key := r.hosts[0], r.hosts[0].key()
			r.stream.stopQuietly()
			r.Put(key, value)
			measure(t, "containers are refused", time.Second, func() { h.waitProblem("belongs to", "172.30.1.77") })
			h.refuses(t, "172.30.1.77")
			if now := r.Keys(subnetsPrefix)[key]; now != value {
				t.Errorf("the other host's lease was written over with %s", now)
			}
			r.Delete(key) // it was a mistake
			measure(t, "the subnet is the host's again", time.Second, func() { h.waitWell() })
			if h.key() != key {
				t.Errorf("the host has %s, want %s as before", h.key(), key)
			}
			r.stream = NewStream(r.a, r.b)
			r.well(t)
		})
	}
}
