package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// reaches waits until the host pings all these addresses by the underlay.
func (h *Host) reaches(addrs ...string) {
	h.t.Helper()
	for _, addr := range addrs {
		eventually(h.t, h.Name+" reaches "+addr, func() error {
			out, err := h.Try("ping", "-c", "1", "-W", "1", addr)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
}

// TestNetworkThatSwallows writes a network that covers the hosts, their links and etcd, and a lease that does, beside
// what they have: nobody follows, and the correction arrives.
func TestNetworkThatSwallows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	want := r.hosts[0].waitWell().Network
	const wide = pool4 + `"EnableIPv6":true,"IPv6Network":"fc00::/7","Backend":{"Type":"vxlan"}`
	for _, args := range [][]string{{"set", "--force"}, {"validate"}} {
		_, err := r.hosts[0].TryOverlayctl(append(append([]string{"network"}, args...), "{"+wide+"}")...)
		if err == nil || !strings.Contains(err.Error(), "the network fc00::/7 covers ") {
			t.Errorf("overlayctl network %s: %v, want that it names what is covered", args, err)
		}
	}
	r.setNetwork(wide)
	for _, h := range r.hosts {
		if s := h.waitProblem("not followed", "the network fc00::/7 covers "); !s.Ready || s.Network != want {
			t.Errorf("status with a network that covers everything: %+v", s)
		}
		h.logs("needs attention", "fc00::/7 covers")
	}
	liar := subnetKey("10.5.90.0/24", "fd00:30:1::/64")
	r.Put(liar, strings.Replace(fakeValue(90), "fd00:30:1::5a", "fd00:31::5a", 1))
	for _, h := range r.hosts {
		eventually(t, h.Name+" names the lease", func() error {
			out, err := h.TryOverlayctl("status", "-o", "json", "--run-dir", h.RunDir)
			if !strings.Contains(out, "fd00:30:1::/64 covers ") {
				return fmt.Errorf("%v: %s", err, out)
			}
			return nil
		})
		h.WaitPeers(1)
	}
	r.hosts[0].Daemon.Stop(syscall.SIGTERM)
	r.hosts[0].Start()
	r.hosts[0].WaitReady()
	r.hosts[0].waitProblem("the network fc00::/7 covers ")
	late := r.NewHost(r.wire, 13)
	late.Start()
	late.waitStatus("waits, and says for what", func(s hostStatus) bool {
		return !s.Ready && strings.Contains(s.Stage, "the network fc00::/7 covers ")
	})
	for _, h := range append(r.hosts, late) {
		h.reaches("172.30.1.11", "172.30.1.12", "172.30.1.100", "fd00:30:1::b", "fd00:30:1::c", "fd00:30:1::64")
	}
	r.Delete(liar)
	r.Put(configKey, r.Config(`{"Type":"vxlan"}`))
	late.WaitReady()
	r.hosts = append(r.hosts, late)
	r.well(t, keys...)
}

// TestFirstNetworkSwallows has no other network to stay with.
func TestFirstNetworkSwallows(t *testing.T) {
	t.Parallel()
	l, s := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	l.Put(configKey, `{"Network":"172.16.0.0/12","Backend":{"Type":"vxlan"}}`)
	hosts := l.NewHosts(s, 2)
	pinned := l.NewHost(s, 13)
	pinned.Start("--network=10.7.0.0/16")
	for _, h := range hosts {
		h.Start()
	}
	for _, h := range hosts {
		h.waitStatus("waits, and says for what", func(s hostStatus) bool {
			return !s.Ready && strings.Contains(s.Stage, "the network 172.16.0.0/12 covers this host's address 172.30.1.1")
		})
		h.reaches("172.30.1.11", "172.30.1.12", "172.30.1.100")
	}
	pinned.waitProblem("etcd's network 172.16.0.0/12 is not the one that network: pins (10.7.0.0/16)")
	l.Put(configKey, l.Config(`{"Type":"vxlan"}`))
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(1)
	}
	pinned.waitProblem("etcd's network " + overlayV4 + " is not the one that network: pins (10.7.0.0/16)")
	l.Put(configKey, `{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan"}}`)
	for _, h := range hosts { // they stay with theirs, in which they have leases
		h.waitProblem("10.7.0.0/16")
	}
}
