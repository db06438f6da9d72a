package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The overlay's pools, as a network configuration has them.
const (
	pool4 = `"Network":"` + overlayV4 + `",`
	pool6 = `"EnableIPv6":true,"IPv6Network":"` + overlayV6 + `",`
)

// setNetwork writes a network configuration as somebody does who asks nobody.
func (r *rig) setNetwork(keys string) {
	r.t.Helper()
	r.Put(configKey, "{"+keys+"}")
}

// TestConfigChangesLive changes what can be changed while packets pass.
func TestConfigChangesLive(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--ip-masq")
	keys := r.keys()
	for _, c := range []struct {
		name, config string
		backend      string
		path         string // in each family, %s standing for what is another in IPv6
		mtu          int
	}{
		{"direct routing", pool4 + pool6 + `"Backend":{"Type":"vxlan","DirectRouting":true}`, "vxlan", "dev eth0", 1430},
		{"a smaller MTU", pool4 + pool6 + `"Backend":{"Type":"vxlan","MTU":1400}`, "vxlan", "dev overlay%s.1", 1330},
		{"another backend", pool4 + pool6 + `"Backend":{"Type":"host-gw"}`, "host-gw", "dev eth0", 1500},
		{"another VNI", pool4 + pool6 + `"Backend":{"Type":"vxlan","VNI":7}`, "vxlan", "dev overlay%s.7", 1430},
		{"a wider network", `"Network":"10.4.0.0/15","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fc00:5::/47","Backend":{"Type":"vxlan"}`,
			"vxlan", "dev overlay%s.1", 1430},
	} {
		measure(t, c.name+" is in force", time.Second, func() {
			r.setNetwork(c.config)
			for i, h := range r.hosts {
				h.waitStatus("has "+c.name, func(s hostStatus) bool {
					return s.Ready && !s.Degraded && s.Backend == c.backend && s.MTU == c.mtu
				})
				for j, peer := range r.hosts[1-i].waitWell().Subnets {
					path := strings.Replace(c.path, "%s", []string{"", "6"}[j], 1)
					eventually(t, "the route says it too", func() error {
						if out := h.Exec("ip", r.families()[j], "route", "show", peer); !strings.Contains(out, path) || strings.Count(out, "\n") != 1 {
							return fmt.Errorf("%q", out)
						}
						return nil
					})
				}
			}
		})
		r.stream.Pass(500)
	}
	for name, want := range map[string]string{"FLANNEL_NETWORK": "10.4.0.0/15", "FLANNEL_IPV6_NETWORK": "fc00:5::/47"} {
		if got := envValue(t, r.hosts[0], name); got != want {
			t.Errorf("subnet.env has %s=%s, want %s", name, got, want)
		}
	}
	r.well(t, keys...)
}

// TestNewLeasesElsewhere changes where leases are made: hosts keep what they have, also over a restart, and new ones
// get what is asked for.
func TestNewLeasesElsewhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	r.setNetwork(pool4 + `"SubnetLen":26,"SubnetMin":"10.5.255.64",` +
		pool6 + `"IPv6SubnetLen":66,"IPv6SubnetMin":"fc00:5:0:ffff:4000::","Backend":{"Type":"vxlan"}`)
	for _, h := range r.hosts {
		h.waitProblem("does not lease subnet", strings.TrimPrefix(h.key(), subnetsPrefix))
	}
	r.hosts[0].Daemon.Stop(syscall.SIGTERM)
	r.hosts[0].Start()
	r.hosts[0].WaitReady()
	late := r.NewHost(r.wire, 13)
	late.Start()
	late.WaitReady()
	if got := late.key(); !strings.HasPrefix(got, subnetsPrefix+"10.5.255.") || !strings.Contains(got, "-26&fc00:5:0:ffff:") || !strings.HasSuffix(got, "-66") {
		t.Errorf("a new host has %s, want what the network leases now", got)
	}
	c := late.NewContainer()
	if err := pingAll(c, r.a); err != nil {
		t.Error(err)
	}
	r.hosts = append(r.hosts, late)
	r.Put(configKey, r.Config(`{"Type":"vxlan"}`))
	for i, h := range r.hosts[:2] {
		h.waitWell()
		if h.key() != keys[i] {
			t.Errorf("%s has %s, want %s as before", h.Name, h.key(), keys[i])
		}
	}
	r.stream.Stop()
}

// TestConfigThatCannotBeFollowed has what no host can do while it runs: it is named, and nothing is torn down.
func TestConfigThatCannotBeFollowed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, config, says string
		fromRestart        bool // it is followed from then on
		onlyHosts          bool // can tell that it does not work
	}{
		{name: "another network", config: `"Network":"10.6.0.0/16",` + pool6 + `"Backend":{"Type":"vxlan"}`, says: "10.6.0.0/16", fromRestart: true},
		{name: "another IPv6 network", config: pool4 + `"EnableIPv6":true,"IPv6Network":"fc00:6::/48","Backend":{"Type":"vxlan"}`,
			says: "fc00:6::/48", fromRestart: true},
		{name: "a family less", config: `"EnableIPv4":false,` + pool6 + `"Backend":{"Type":"vxlan"}`, says: "fc00:5::/48", fromRestart: true},
		{name: "an unknown backend", config: pool4 + pool6 + `"Backend":{"Type":"ipsec"}`, says: "ipsec"},
		{name: "an MTU that nothing carries", config: pool4 + pool6 + `"Backend":{"Type":"vxlan","MTU":9000}`, says: "9000", onlyHosts: true},
		{name: "no network at all", config: `"Backend":{"Type":"vxlan"}`, says: "Network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			keys := r.keys()
			want := r.hosts[0].waitWell().Network
			if out, err := r.hosts[0].TryOverlayctl("network", "validate", "{"+c.config+"}"); err == nil && !c.onlyHosts {
				t.Errorf("overlayctl network validate finds nothing wrong: %s", out)
			}
			r.setNetwork(c.config)
			for _, h := range r.hosts {
				if s := h.waitProblem(c.says); !s.Ready || s.Network != want {
					t.Errorf("status with a config that cannot be followed: %+v", s)
				}
				h.logs(c.says)
			}
			r.stream.Pass(1000)
			for _, h := range r.hosts {
				h.WaitPeers(1)
			}
			if !c.fromRestart {
				r.hosts[0].Daemon.Stop(syscall.SIGTERM)
				r.hosts[0].Start()
				r.hosts[0].WaitReady()
				r.hosts[0].waitProblem(c.says)
				r.hosts[0].WaitPeers(1)
			}
			r.Put(configKey, r.Config(`{"Type":"vxlan"}`))
			r.well(t, keys...)
		})
	}
}
