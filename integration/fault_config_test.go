package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
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
	const pool = `"Network":"10.5.0.0/16"`
	for _, c := range []struct {
		name, config  string
		backend, path string
		mtu           int
	}{
		{"direct routing", pool + `,"Backend":{"Type":"vxlan","DirectRouting":true}`, "vxlan", "via 172.30.1.", 1450},
		{"a smaller MTU", pool + `,"Backend":{"Type":"vxlan","MTU":1400}`, "vxlan", "dev overlay.1", 1350},
		{"another backend", pool + `,"Backend":{"Type":"host-gw"}`, "host-gw", "via 172.30.1.", 1500},
		{"another VNI", pool + `,"Backend":{"Type":"vxlan","VNI":7}`, "vxlan", "dev overlay.7", 1450},
		{"a wider network", `"Network":"10.4.0.0/15","SubnetLen":24,"Backend":{"Type":"vxlan"}`, "vxlan", "dev overlay.1", 1450},
	} {
		measure(t, c.name+" is in force", time.Second, func() {
			r.setNetwork(c.config)
			for i, h := range r.hosts {
				peer := strings.TrimPrefix(strings.Replace(keys[1-i], "-24", "/24", 1), subnetsPrefix)
				h.waitStatus("has "+c.name, func(s hostStatus) bool {
					return s.Ready && !s.Degraded && s.Backend == c.backend && s.MTU == c.mtu
				})
				eventually(t, "the route says it too", func() error {
					if out := h.Exec("ip", "route", "show", peer); !strings.Contains(out, c.path) || strings.Count(out, "\n") != 1 {
						return fmt.Errorf("%q", out)
					}
					return nil
				})
			}
		})
		r.stream.Pass(100)
	}
	if got := envValue(t, r.hosts[0], "FLANNEL_NETWORK"); got != "10.4.0.0/15" {
		t.Errorf("subnet.env has the network %s", got)
	}
	r.well(t, keys...)
}

// TestNewLeasesElsewhere changes where leases are made: hosts keep what they have, also over a restart, and new ones
// get what is asked for.
func TestNewLeasesElsewhere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	r.setNetwork(`"Network":"10.5.0.0/16","SubnetLen":26,"SubnetMin":"10.5.255.64","Backend":{"Type":"vxlan"}`)
	for _, h := range r.hosts {
		h.waitProblem("does not lease subnet", strings.TrimPrefix(h.key(), subnetsPrefix))
	}
	r.hosts[0].Daemon.Stop(syscall.SIGTERM)
	r.hosts[0].Start()
	r.hosts[0].WaitReady()
	late := r.NewHost(r.wire, 13)
	late.Start()
	late.WaitReady()
	if got := envValue(t, late, "FLANNEL_SUBNET"); !strings.HasPrefix(got, "10.5.255.") || !strings.HasSuffix(got, "/26") {
		t.Errorf("a new host has %s, want what the network leases now", got)
	}
	c := late.NewContainer()
	if err := c.PingSize(r.a.Addrs[0], 1000); err != nil {
		t.Error(err)
	}
	r.hosts = append(r.hosts, late)
	r.setNetwork(`"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}`)
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
		{name: "another network", config: `"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}`, says: "10.6.0.0/16", fromRestart: true},
		{name: "another family", config: `"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00:5::/48","Backend":{"Type":"vxlan"}`,
			says: "fc00:5::/48", fromRestart: true},
		{name: "an unknown backend", config: `"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}`, says: "ipsec"},
		{name: "an MTU that nothing carries", config: `"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":9000}`, says: "9000", onlyHosts: true},
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
			r.stream.Pass(200)
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
