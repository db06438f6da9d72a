package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestClockJumps sets a host's wall clock a day ahead, and then a day back: its lease stays the one it was and is
// renewed, what depends on time happens when it should, and a restart under the wrong clock changes nothing.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	const ttl = "--lease-ttl=10s"
	r := newRig(t, ttl)
	keys, h := r.keys(), r.hosts[0]
	h.Daemon.Stop(syscall.SIGTERM)
	c := &clock{t: t}
	c.start(h, ttl)
	h.WaitReady()
	before := r.lease(t, keys[0])
	for i, jump := range []time.Duration{24 * time.Hour, -48 * time.Hour} {
		c.offset.Add(int64(jump))
		jumped := time.Now()
		h.sees(c, r, fmt.Sprintf("garbage-%d", i))
		r.comesAndGoes(t, h)
		for time.Since(jumped) < shortTTL+5*time.Second { // a lease that is not renewed ends
			if status, body, err := h.Get("http://127.0.0.1:9417/readyz"); err != nil || status != 200 {
				t.Errorf("/readyz after %v: status %d, %v: %s", jump, status, err, body)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if now := r.lease(t, keys[0]); now != before {
			t.Errorf("after %v the lease is %+v, want %+v as before", jump, now, before)
		}
		h.expires(t, c)
	}
	if log := h.Daemon.Output.String(); strings.Contains(log, "is lost") || h.metric(`overlayd_lease_errors_total{kind="lost"}`) != 0 {
		t.Error("the host has lost its lease")
	}
	h.Daemon.Stop(syscall.SIGKILL)
	c.start(h, ttl)
	h.WaitReady()
	h.logs("msg=ready", c.now().UTC().Format("time="+time.DateOnly))
	if now := r.lease(t, keys[0]); now.Created != before.Created {
		t.Errorf("after a restart the lease is %+v, want %+v as before", now, before)
	}
	r.well(t, keys...)
}

// leaseKey is what etcd has of a lease's key.
type leaseKey struct {
	Created int64 `json:"create_revision"`
	Version int64
	Lease   int64
}

func (r *rig) lease(t *testing.T, key string) leaseKey {
	t.Helper()
	var got struct{ Kvs []leaseKey }
	out := r.etcd.ctl("get", key, "-w", "json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Kvs) != 1 {
		t.Fatalf("lease %s: %v in %s", key, err, out)
	}
	return got.Kvs[0]
}

// sees checks that the daemon has the clock's time: it logs a line about a key that is no lease.
func (h *Host) sees(c *clock, r *rig, garbage string) {
	h.t.Helper()
	r.Put(subnetsPrefix+garbage, "garbage")
	eventually(h.t, h.Name+" logs "+garbage, func() error {
		for line := range strings.Lines(h.Daemon.Output.String()) {
			if !strings.Contains(line, garbage) {
				continue
			}
			stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			if at, err := time.Parse(time.RFC3339, stamp); err != nil || c.now().Sub(at).Abs() > 2*patience {
				h.t.Fatalf("the daemon does not see the clock, which says %v: %v in %s", c.now(), err, line)
			}
			return nil
		}
		return fmt.Errorf("not yet")
	})
}

// expires checks that overlayctl says when the host's lease ends: the daemon by its host's clock, etcd's list by that
// of the machine on which overlayctl runs, which is right here.
func (h *Host) expires(t *testing.T, c *clock) {
	t.Helper()
	sane := func(what string, at, now time.Time) {
		if left := at.Sub(now); left < -time.Second || left > shortTTL+time.Second {
			t.Errorf("%s: expires in %v, want at most %v", what, left, shortTTL)
		}
	}
	s := h.waitWell()
	sane("status", s.Lease.Expires, c.now())
	var leases []struct {
		Host    string
		Expires time.Time
	}
	if err := json.Unmarshal([]byte(h.Overlayctl("leases", "list", "-o", "json")), &leases); err != nil || len(leases) != 2 {
		t.Fatalf("leases list: %v in %v", err, leases)
	}
	for _, l := range leases {
		sane("lease of "+l.Host, l.Expires, time.Now())
	}
}

// comesAndGoes has a peer come and go: the host follows at once, and its cache does.
func (r *rig) comesAndGoes(t *testing.T, h *Host) {
	t.Helper()
	r.Put(fakeKey(0), fakeValue(64))
	measure(t, "a lease reaches the host", time.Second, func() { h.WaitPeers(2) })
	h.waitCached(2)
	r.Delete(fakeKey(0))
	measure(t, "a peer that left is gone", time.Second, func() { h.WaitPeers(1) })
	h.waitCached(1)
}
