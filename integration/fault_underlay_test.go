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
		number int // of its addresses on the segment, then
	}{
		{"other addresses", func(r *rig, h *Host) {
			r.wire.removeAddrs(h, 11)
			r.wire.Address(h.Node, "eth0", 51)
			r.wire.DefaultRoute(h.Node, "eth0")
		}, 51},
		{"another interface", func(r *rig, h *Host) {
			r.wire.Plug(h.Node, "eth1", 52)
			for _, family := range r.families() {
				h.Exec("ip", family, "route", "delete", "default")
			}
			r.wire.DefaultRoute(h.Node, "eth1")
			h.Exec("ip", "link", "set", "eth0", "down")
		}, 52},
		{"no address, and the same again", func(r *rig, h *Host) {
			r.wire.removeAddrs(h, 11)
			h.waitProblem("default route")
			r.wire.Address(h.Node, "eth0", 11)
			r.wire.DefaultRoute(h.Node, "eth0")
		}, 11},
		{"no IPv6 address, and the same again", func(r *rig, h *Host) {
			v6 := r.wire.Addrs(11)[1].String()
			h.Exec("ip", "-6", "address", "delete", v6, "dev", "eth0")
			h.Exec("ip", "-6", "route", "delete", "default")
			h.waitProblem("IPv6 default route")
			if err := r.a.PingSize(r.b.Addrs[0], 1000); err != nil {
				r.t.Errorf("IPv4, which is well: %v", err)
			}
			h.Exec("ip", "-6", "address", "add", v6, "dev", "eth0", "nodad")
			h.Exec("ip", "-6", "route", "add", "default", "via", r.wire.Addrs(gatewayNumber)[1].Addr().String(), "dev", "eth0")
		}, 11},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h, keys := r.hosts[0], r.keys()
			r.stream.stopQuietly() // what is on the way to an address that is gone is lost
			c.change(r, h)
			measure(t, c.name+": the peer follows", time.Second, func() {
				for i, link := range []string{"overlay.1", "overlay6.1"} {
					ip := r.wire.Addrs(c.number)[i].Addr().String()
					eventually(t, "the lease says the new address", func() error {
						if value := r.Keys(subnetsPrefix)[keys[0]]; !strings.Contains(value, `"`+ip+`"`) {
							return fmt.Errorf("it is %s", value)
						}
						return nil
					})
					eventually(t, "the peer sends there", func() error {
						if fdb := r.hosts[1].Exec("bridge", "fdb", "show", "dev", link); !strings.Contains(fdb, "dst "+ip+" ") {
							return fmt.Errorf("%s", fdb)
						}
						return nil
					})
				}
			})
			eventually(t, "packets pass", func() error { return pingAll(r.a, r.b) })
			r.stream = NewStream(r.a, r.b)
			r.well(t, keys...)
		})
	}
}

// removeAddrs takes the addresses of the number from the host, and with them its default routes.
func (s *Segment) removeAddrs(h *Host, number int) {
	h.t.Helper()
	for i, a := range s.Addrs(number) {
		h.Exec("ip", "address", "delete", a.String(), "dev", "eth0")
		_, _ = h.Try("ip", h.lab.families()[i], "route", "delete", "default") // IPv4's is gone already
	}
}
