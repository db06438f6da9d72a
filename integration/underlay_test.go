package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestDirectRouting looks at the wire: near hosts send containers' packets as they are, far ones in vxlan.
func TestDirectRouting(t *testing.T) {
	t.Parallel()
	for _, s := range stacks {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			lab, near := newWire(t, s.Stack, `{"Type":"vxlan","DirectRouting":true}`)
			far := lab.NewSegment(2)
			lab.NewRouter(near, far)
			hosts := []*Host{lab.NewHost(near, 11), lab.NewHost(near, 12), lab.NewHost(far, 13)}
			startAll(t, hosts, "--ip-masq")
			a, b, c := hosts[0].NewContainer(), hosts[1].NewContainer(), hosts[2].NewContainer()
			mtu := 1450
			if s.V6 {
				mtu = 1430
			}
			wire := near.NewCapture()
			for _, dst := range []*Container{b, c} {
				reach(t, a, dst, mtu)
			}
			for i := range a.Addrs {
				plain := func(from, to *Container) flow { return flow{Src: from.Addrs[i], Dst: to.Addrs[i]} }
				for _, f := range []flow{plain(a, b), plain(b, a)} {
					if wire.Count(f) == 0 {
						t.Errorf("no plain packets from %s to %s, want the near pair's", f.Src, f.Dst)
					}
				}
				for _, f := range []flow{plain(a, c), plain(c, a)} {
					if wire.Count(f) != 0 {
						t.Errorf("plain packets from %s to %s, want them in vxlan", f.Src, f.Dst)
					}
				}
				tunnel := func(from, to *Host) flow {
					return flow{Src: from.Addrs[i], Dst: to.Addrs[i], VXLAN: true}
				}
				if wire.Count(tunnel(hosts[0], hosts[1])) != 0 || wire.Count(tunnel(hosts[1], hosts[0])) != 0 {
					t.Error("vxlan between near hosts, want none")
				}
				if wire.Count(tunnel(hosts[0], hosts[2])) == 0 || wire.Count(tunnel(hosts[2], hosts[0])) == 0 {
					t.Error("no vxlan between far hosts")
				}
			}
		})
	}
}

// TestVXLANAcrossRouter has every peer behind a router and no direct routing.
func TestVXLANAcrossRouter(t *testing.T) {
	t.Parallel()
	lab, one := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	two := lab.NewSegment(2)
	lab.NewRouter(one, two)
	hosts := []*Host{lab.NewHost(one, 11), lab.NewHost(two, 12)}
	startAll(t, hosts, "--ip-masq")
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	reach(t, a, b, 1430)
	reach(t, b, a, 1430)
}

// TestHostGWBehindRouter has a host-gw peer that no route can reach: the rest works, and the daemon says so.
func TestHostGWBehindRouter(t *testing.T) {
	t.Parallel()
	lab, one := newWire(t, Stack{V4: true}, `{"Type":"host-gw"}`)
	two := lab.NewSegment(2)
	lab.NewRouter(one, two)
	hosts := []*Host{lab.NewHost(one, 11), lab.NewHost(one, 12), lab.NewHost(two, 13)}
	for _, h := range hosts {
		h.Start("--ip-masq")
	}
	for _, h := range hosts[:2] {
		h.WaitPeers(1)
	}
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	if err := a.PingSize(b.Addrs[0], 1500); err != nil {
		t.Error(err)
	}
	eventually(t, "the log names the peer that is not reached", func() error {
		if log := hosts[0].Daemon.Output.String(); !strings.Contains(log, hosts[2].Addrs[0].String()) {
			return fmt.Errorf("no word of %s", hosts[2].Addrs[0])
		}
		return nil
	})
}
