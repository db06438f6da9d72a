package integration

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestCompactionWhileAway has etcd forget what a host has not heard yet.
func TestCompactionWhileAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys, h := r.keys(), r.hosts[0]
	h.loseEtcd(swallowed)
	h.waitProblem("etcd")
	r.Put(fakeKey(0), fakeValue(64))
	r.Put(fakeKey(1), fakeValue(65))
	r.Delete(fakeKey(1))
	r.etcd.ctl("compact", strconv.Itoa(r.revision(t)))
	h.findEtcd()
	measure(t, "what was missed is there", 10*time.Second, func() { h.WaitPeers(2) })
	h.logs("listing the leases anew")
	r.Delete(fakeKey(0))
	r.well(t, keys...)
}

// revision is etcd's.
func (r *rig) revision(t *testing.T) int {
	t.Helper()
	_, after, _ := strings.Cut(r.etcd.ctl("get", "/", "-w", "json"), `"revision":`)
	digits, _, _ := strings.Cut(after, ",")
	n, err := strconv.Atoi(digits)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestEtcdChanges puts another store under etcd's address: one that is older, that is empty, or of another cluster. No
// host loses a peer.
func TestEtcdChanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(t *testing.T, r *rig)
	}{
		{"restored from before the second host came", func(t *testing.T, r *rig) {
			backup := r.etcd.backup()
			r.hosts = append(r.hosts, r.NewHost(r.wire, 13))
			r.hosts[2].Start()
			for _, h := range r.hosts {
				h.WaitPeers(2)
			}
			r.stream.stopQuietly()
			r.hosts[2].WaitReady()
			c := r.hosts[2].NewContainer()
			r.stream = NewStream(r.a, c)
			r.etcd.restore(backup)
		}},
		{"restored, and ahead again", func(t *testing.T, r *rig) {
			backup := r.etcd.backup()
			r.Put(fakeKey(0), fakeValue(64))
			for _, h := range r.hosts {
				h.WaitPeers(2)
				h.loseEtcd(swallowed)
			}
			r.etcd.restore(backup)
			for i := range 50 {
				r.Put(fmt.Sprintf("/other/%d", i), "x")
			}
			for _, h := range r.hosts {
				h.findEtcd()
			}
			for _, h := range r.hosts {
				eventually(t, "the host notices", func() error {
					if !strings.Contains(h.Daemon.Output.String(), "listing the leases anew") {
						return errors.New("not yet")
					}
					return nil
				})
				h.waitWell() // with the peer that etcd has lost
				h.WaitPeers(2)
			}
			r.Put(fakeKey(0), fakeValue(64)) // it comes back, and leaves as one does
			time.Sleep(time.Second)
			r.Delete(fakeKey(0))
		}},
		{"wiped", func(t *testing.T, r *rig) {
			config := r.Keys("/coreos.com/")[configKey]
			r.etcd.restore(filepath.Join(t.TempDir(), "empty"))
			time.Sleep(2 * time.Second) // it stays empty: the hosts hold on to the config that they know
			r.stream.Pass(250)
			r.Put(configKey, config)
		}},
		{"another cluster", func(t *testing.T, r *rig) {
			config := r.Keys("/coreos.com/")[configKey]
			r.etcd.restore(filepath.Join(t.TempDir(), "other"), aloneArgs("second")...)
			r.Put(configKey, config)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			keys := r.keys()
			c.change(t, r)
			measure(t, "etcd "+c.name+": all is well", 10*time.Second, func() {
				for _, h := range r.hosts {
					h.waitWell()
				}
			})
			r.hosts[0].logs("listing the leases anew")
			r.well(t, keys...)
			if n := len(r.Keys(subnetsPrefix)); n != len(r.hosts) {
				t.Errorf("%d leases in etcd, want one for each of %d hosts", n, len(r.hosts))
			}
		})
	}
}
