package agent

import (
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// The host asks for another subnet when the one it lost has no container any more, and not before.
func TestLeavesTheLostSubnet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir())
		var vacant atomic.Bool
		var asked atomic.Value
		r.vacant = func(p []netip.Prefix) (bool, error) {
			asked.Store(slices.Clone(p))
			return vacant.Load(), nil
		}
		r.start(t)
		held := news(t, vxlanConfig, nil)
		r.member.tell(held)
		eventually(t, "ready", func() bool { return r.Status().Ready })
		taken := held
		taken.Own = etcdstore.Own{State: etcdstore.Taken, Reason: "10.5.72.0/24 is held by host b", Leaves: held.Own.Record.Subnets()}
		r.member.tell(taken)
		time.Sleep(2 * settleTime)
		abandoned := func() bool { return slices.Equal(r.member.vacated(), held.Own.Record.Subnets()) }
		if abandoned() {
			t.Fatal("the subnet was given up though containers have it")
		}
		vacant.Store(true)
		eventually(t, "the subnet is given up", abandoned)
		if got := asked.Load(); !slices.Equal(got.([]netip.Prefix), held.Own.Record.Subnets()) {
			t.Errorf("looked for containers in %v", got)
		}

		claiming := held
		claiming.Own = etcdstore.Own{State: etcdstore.Claiming}
		r.member.tell(claiming)
		synctest.Wait()
		if _, err := os.Stat(r.cfg.SubnetFile); err == nil {
			t.Error("subnet.env offers a subnet while none is held")
		}
		vacant.Store(false)
		moved := held
		moved.Own.Record = *record("10.5.99.0/24", "172.30.0.11", "vxlan", 0x11)
		r.member.tell(moved)
		eventually(t, "subnet.env is back", func() bool { _, err := os.Stat(r.cfg.SubnetFile); return err == nil })
		asked.Store([]netip.Prefix{})
		time.Sleep(5 * housekeeping)
		if got := asked.Load(); !slices.Equal(got.([]netip.Prefix), held.Own.Record.Subnets()) {
			t.Errorf("after the move, looked for containers in %v, want the former subnet", got)
		}
		vacant.Store(true)
		time.Sleep(5 * housekeeping)
		asked.Store([]netip.Prefix{})
		time.Sleep(5 * housekeeping)
		if got := asked.Load().([]netip.Prefix); len(got) != 0 {
			t.Errorf("still looks for containers in %v", got)
		}
	})
}

// A host follows a reservation when it has no container. While that is made sure of it takes no new ones.
func TestMovesToTheReservedSubnet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir())
		var vacant atomic.Bool
		r.vacant = func([]netip.Prefix) (bool, error) { return vacant.Load(), nil }
		r.start(t)
		held := news(t, vxlanConfig, nil)
		r.member.tell(held)
		eventually(t, "ready", func() bool { return r.Status().Ready })
		held.Own.Reason, held.Own.Leaves = "10.5.73.0/24 is reserved for this host", held.Own.Record.Subnets()
		r.member.tell(held)
		time.Sleep(2 * settleTime)
		offers := func() bool { _, err := os.Stat(r.cfg.SubnetFile); return err == nil }
		if !offers() || len(r.member.vacated()) > 0 {
			t.Fatal("containers are in the way, and the host moves or refuses more")
		}
		vacant.Store(true)
		eventually(t, "new containers are refused", func() bool { return !offers() })
		vacant.Store(false) // one was on its way
		eventually(t, "containers are taken again", offers)
		vacant.Store(true)
		time.Sleep(2 * settleTime)
		if got := r.member.vacated(); !slices.Equal(got, held.Own.Record.Subnets()) {
			t.Errorf("told that %v is vacant", got)
		}
	})
}

// Leases beside the host's own are given back when no container has had an address of them for a while.
func TestGivesStraysBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, t.TempDir())
		r.start(t)
		held := news(t, vxlanConfig, nil)
		held.Own.Leaves = []netip.Prefix{netip.MustParsePrefix("10.5.80.0/24")}
		r.member.tell(held)
		time.Sleep(settleTime / 2)
		if len(r.member.vacated()) > 0 {
			t.Error("given back at once, though a container may be on its way")
		}
		time.Sleep(settleTime)
		if got := r.member.vacated(); !slices.Equal(got, held.Own.Leaves) {
			t.Errorf("told that %v is vacant", got)
		}
	})
}
