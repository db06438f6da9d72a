package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// needs skips a test where the kernel cannot make what a script makes; the script is run in a namespace of its own.
func needs(t *testing.T, what, script string) {
	t.Helper()
	n := newLab(t, both).node("needs")
	if out, err := n.Try("sh", "-ec", script); err != nil {
		t.Skipf("needs %s of the kernel, as make test-kernels has: %s", what, strings.TrimSpace(out))
	}
}

func needsNetem(t *testing.T) {
	t.Helper()
	needs(t, "netem", "tc qdisc add dev lo root netem delay 1ms")
}

// poor makes the wire between the segment and the node of a number poor in both directions, as netem's words say; each
// direction has them.
func (s *Segment) poor(n *Node, number int, netem string) {
	s.t.Helper()
	words := append([]string{"root", "netem", "limit", "10000"}, strings.Fields(netem)...)
	n.Exec(append([]string{"tc", "qdisc", "replace", "dev", "eth0"}, words...)...)
	s.Exec(append([]string{"tc", "qdisc", "replace", "dev", fmt.Sprintf("p%d", number)}, words...)...)
}

// good undoes poor.
func (s *Segment) good(n *Node, number int) {
	s.t.Helper()
	n.Exec("tc", "qdisc", "delete", "dev", "eth0", "root")
	s.Exec("tc", "qdisc", "delete", "dev", fmt.Sprintf("p%d", number), "root")
}

// TestEtcdFarAway has etcd 200 ms away and each twentieth packet to and from it lost: hosts join, follow each other, and keep
// their leases, and no packet between containers is lost.
func TestEtcdFarAway(t *testing.T) {
	t.Parallel()
	needsNetem(t)
	r := &rig{}
	r.Lab, r.wire, r.etcd = newFaultWire(t, `{"Type":"vxlan"}`)
	r.wire.poor(r.Etcd, etcdNumber, "delay 100ms loss 5%")
	r.hosts = r.NewHosts(r.wire, 2)
	measure(t, "two hosts join", 40*time.Second, func() { startAll(t, r.hosts) })
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b)
	keys := r.keys()
	for i := range 5 {
		r.Put(fakeKey(i), fakeValue(64+i))
		measure(t, "a new lease reaches the hosts", 10*time.Second, func() {
			for _, h := range r.hosts {
				h.WaitPeers(2)
			}
		})
		r.Delete(fakeKey(i))
		measure(t, "that it is gone reaches the hosts", 10*time.Second, func() {
			for _, h := range r.hosts {
				h.WaitPeers(1)
			}
		})
	}
	r.Delete(keys[0])
	measure(t, "a lease is claimed again", 10*time.Second, func() {
		eventually(t, "the lease is there", func() error {
			if _, ok := r.Keys(subnetsPrefix)[keys[0]]; !ok {
				return fmt.Errorf("it is not: %v", r.Keys(subnetsPrefix))
			}
			return nil
		})
	})
	late := r.NewHost(r.wire, 13)
	late.Start()
	measure(t, "a host joins", 40*time.Second, func() { late.WaitReady(); late.WaitPeers(2) })
	r.stream.Pass(250)
	r.hosts = append(r.hosts, late)
	r.wire.good(r.Etcd, etcdNumber)
	measure(t, "etcd is near again: all is well", 20*time.Second, func() { r.well(t, keys...) })
}

// TestNetworkChangesWhilePacketsOvertake moves a network while packets of the underlay are late, and overtake each other: those
// that were sent in the old way arrive after the move, and none is lost.
func TestNetworkChangesWhilePacketsOvertake(t *testing.T) {
	t.Parallel()
	needsNetem(t)
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	for i, h := range hosts {
		wire.poor(h.Node, 11+i, "delay 60ms 40ms")
	}
	x := newTraffic(hosts[0].NewContainer(), hosts[1].NewContainer())
	for _, to := range []struct{ name, backend, path string }{
		{"vxlan to host-gw", `{"Type":"host-gw"}`, "dev eth0"},
		{"host-gw to vxlan", `{"Type":"vxlan"}`, ".1 metric"},
		{"another VNI", `{"Type":"vxlan","VNI":2}`, ".2 metric"},
	} {
		x.lossless(to.name, func() { lab.change(hosts, to.backend, to.path) })
	}
	x.lossless("another port", func() { lab.changePort(hosts, "2", "4789") })
	x.stop()
	if !strings.Contains(hosts[0].Exec("tc", "-s", "qdisc", "show", "dev", "eth0"), "netem") {
		t.Error("nothing was late: the test tests nothing")
	}
}

// TestUnderlayLosesPackets has each fifth packet between hosts lost, and the others 50 ms late: what containers send by TCP
// arrives all the same, and no host takes another for gone or its own objects for changed.
func TestUnderlayLosesPackets(t *testing.T) {
	t.Parallel()
	needsNetem(t)
	for _, backend := range backends {
		t.Run(backend.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, both, backend.Config)
			hosts := lab.NewHosts(wire, 2)
			startAll(t, hosts)
			a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
			for _, dst := range b.Addrs {
				eventually(t, "first ping", func() error { return a.PingSize(dst, 100) })
			}
			wire.poor(hosts[0].Node, 11, "delay 25ms loss 10%")
			for i, dst := range b.Addrs {
				seen, err := a.Transfer(b.Node, dst, 100<<10)
				if err != nil || seen != a.Addrs[i] {
					t.Errorf("transfer to %s from %s: %v", dst, seen, err)
				}
			}
			wire.good(hosts[0].Node, 11)
			for _, h := range hosts {
				h.waitWell()
				for _, kind := range []string{"link", "route", "fdb", "neighbour"} {
					if n := h.healed(kind); n > 0 {
						t.Errorf("%s has healed %v of kind %s", h.Name, n, kind)
					}
				}
			}
		})
	}
}

// TestWireGuardOverAPoorUnderlay has a tenth of the packets each way between hosts of an encrypted network lost, the others 100 ms late:
// handshakes come about all the same, and when the underlay is well again, nothing is missing.
func TestWireGuardOverAPoorUnderlay(t *testing.T) {
	t.Parallel()
	needsNetem(t)
	r := &rig{}
	r.Lab, r.wire, r.etcd = newFaultWire(t, secretly)
	r.hosts = r.NewHosts(r.wire, 2)
	for i, h := range r.hosts {
		r.wire.poor(h.Node, 11+i, "delay 25ms loss 5%") // twice each way
	}
	for _, h := range r.hosts {
		h.Start()
		h.WaitReady()
	}
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	for i, dst := range r.b.Addrs {
		measure(t, "the first ping", 20*time.Second, func() {
			eventually(t, "it passes", func() error {
				_, err := r.a.Try("ping", "-n", "-c", "1", "-W", "1", dst.String())
				return err
			})
		})
		if seen, err := r.a.Transfer(r.b.Node, dst, 100<<10); err != nil || seen != r.a.Addrs[i] {
			t.Errorf("transfer to %s from %s: %v", dst, seen, err)
		}
	}
	keys := r.keys()
	for i, h := range r.hosts {
		r.wire.good(h.Node, 11+i)
		h.waitPath("wireguard", 1)
		h.waitWell()
	}
	r.stream = NewStream(r.a, r.b)
	r.stream.Pass(250)
	r.stream.Stop()
	for i, h := range r.hosts {
		if h.key() != keys[i] {
			t.Errorf("%s has %s, want %s as before", h.Name, h.key(), keys[i])
		}
	}
}
