package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestUnderlayAddressChanges gives a host other addresses while it runs: it keeps its subnet, and peers follow.
func TestUnderlayAddressChanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(r *rig, h *Host)
		ip     string
	}{
		{"another address", func(_ *rig, h *Host) {
			h.Exec("ip", "address", "delete", "172.30.1.11/24", "dev", "eth0") // and with it the default route
			h.Exec("ip", "address", "add", "172.30.1.51/24", "dev", "eth0")
			h.Exec("ip", "route", "replace", "default", "via", "172.30.1.1", "dev", "eth0")
		}, "172.30.1.51"},
		{"another interface", func(r *rig, h *Host) {
			r.wire.Plug(h.Node, "eth1", 52)
			h.Exec("ip", "route", "replace", "default", "via", "172.30.1.1", "dev", "eth1")
			h.Exec("ip", "link", "set", "eth0", "down")
		}, "172.30.1.52"},
		{"no address, and the same again", func(_ *rig, h *Host) {
			h.Exec("ip", "address", "delete", "172.30.1.11/24", "dev", "eth0")
			h.waitProblem("default route")
			h.Exec("ip", "address", "add", "172.30.1.11/24", "dev", "eth0")
			h.Exec("ip", "route", "replace", "default", "via", "172.30.1.1", "dev", "eth0")
		}, "172.30.1.11"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h, keys := r.hosts[0], r.keys()
			r.stream.stopQuietly() // what is on the way to an address that is gone is lost
			c.change(r, h)
			measure(t, c.name+": the peer follows", time.Second, func() {
				eventually(t, "the lease says the new address", func() error {
					if value := r.Keys(subnetsPrefix)[keys[0]]; !strings.Contains(value, `"`+c.ip+`"`) {
						return fmt.Errorf("it is %s", value)
					}
					return nil
				})
				eventually(t, "the peer sends there", func() error {
					if fdb := r.hosts[1].Exec("bridge", "fdb", "show", "dev", "overlay.1"); !strings.Contains(fdb, "dst "+c.ip+" ") {
						return fmt.Errorf("%s", fdb)
					}
					return nil
				})
			})
			eventually(t, "packets pass", func() error { return pingAll(r.a, r.b) })
			r.stream = NewStream(r.a, r.b, r.b.Addrs[0])
			r.well(t, keys...)
		})
	}
}
