package integration

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKilledInTheClaim kills a host at random points of its claim: it never has two leases, and leaves nothing in etcd
// that outlives the TTL.
func TestKilledInTheClaim(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	lab, wire, etcd := newFaultWire(t, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	h.Start("--lease-ttl=10s")
	start := time.Now()
	h.WaitReady()
	whole := time.Since(start) // a claim takes a part of this
	key := h.key()
	for range 100 {
		h.Daemon.Stop(syscall.SIGKILL)
		if random.IntN(2) == 0 { // as if it had never had a lease
			for key := range lab.Keys(subnetsPrefix) {
				lab.Delete(key)
			}
		}
		h.Start("--lease-ttl=10s")
		time.Sleep(time.Duration(random.Int64N(int64(whole))))
		if keys := lab.Keys(subnetsPrefix); len(keys) > 1 {
			t.Fatalf("the host has more than one lease: %v", keys)
		}
	}
	h.WaitReady()
	if keys := lab.Keys(subnetsPrefix); len(keys) != 1 || h.key() != key {
		t.Errorf("leases %v, want one, and %s as before", keys, key)
	}
	eventually(t, "what the killed left in etcd ends", func() error {
		out := etcd.ctl("lease", "list")
		if n := strings.Count(out, "\n") - 1; n != 1 {
			return fmt.Errorf("%d leases: %s", n, out)
		}
		return nil
	})
}
