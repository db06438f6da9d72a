package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestNetworksComeAndGo has hosts that join all networks: one that is made is joined, one that is deleted is left with all that it
// had in the kernel, and what is of the others is as it was.
func TestNetworksComeAndGo(t *testing.T) {
	t.Parallel()
	lab, _, hosts := severalNetworks(t, 2)
	startAll(t, hosts, "--networks=all")
	plain := []*Container{hosts[0].NewContainer(), hosts[1].NewContainer()}
	reach(t, plain[0], plain[1], 1450)
	var before []string
	for _, h := range hosts {
		before = append(before, h.Dump())
	}
	for range 2 {
		hosts[0].Overlayctl("network", "create", "blue", "10.20.0.0/16")
		var blue []*Container
		for _, h := range hosts {
			h.WaitNetwork("blue", "10.20.0.0/16", 1)
		}
		for _, h := range hosts {
			blue = append(blue, h.NewContainerIn("blue"))
		}
		reach(t, blue[0], blue[1], 1450)
		if out, err := hosts[0].TryOverlayctl("network", "delete", "blue"); err == nil {
			t.Errorf("deleted under hosts that are in it: %s", out)
		}
		hosts[0].Overlayctl("network", "delete", "blue", "--force") // under containers that run
		for i, h := range hosts {
			eventually(t, h.Name+" has left blue", func() error {
				if _, err := os.Stat(h.subnetFileOf("blue")); err == nil {
					return errors.New("subnet.env is there")
				}
				if out := h.Exec("ip", "route", "show"); strings.Contains(out, "10.20.") && strings.Contains(out, "overlay.2") {
					return errors.New(out)
				}
				if _, err := h.Try("ip", "link", "show", "overlay.2"); err == nil {
					return errors.New("overlay.2 is there")
				}
				return nil
			})
			blue[i].Detach() // as its runtime does when it ends
			h.Exec("sh", "-c", "ip link del ov-blue 2>/dev/null || true")
		}
		reach(t, plain[0], plain[1], 1450)
		eventually(t, "etcd has nothing of it", func() error {
			if left := lab.Keys("/coreos.com/network/blue/"); len(left) > 0 {
				return fmt.Errorf("%v", left)
			}
			return nil
		})
	}
	for i, h := range hosts {
		sameDump(t, h.Node, before[i])
	}
}

// TestNetworksThatClash has a host told of networks that somebody wrote by hand: those that it cannot be in beside what was there
// before are refused by name, and the others go on.
func TestNetworksThatClash(t *testing.T) {
	t.Parallel()
	lab, _, hosts := severalNetworks(t, 2, "blue 10.20.0.0/16")
	put := func(name, config string) {
		lab.Put("/coreos.com/network/"+name+"/config", config)
		lab.Put("/coreos.com/network/overlayd/networks/"+name, "{}")
	}
	put("overlaps", `{"Network":"10.20.128.0/17","Backend":{"Type":"vxlan","VNI":9}}`)
	put("vni", `{"Network":"10.21.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`)
	put("port", `{"Network":"10.22.0.0/16","Backend":{"Type":"udp","Port":8472}}`)
	put("torn", `{"Network":`)
	put("swallows", `{"Network":"172.30.0.0/16","Backend":{"Type":"vxlan","VNI":10}}`)
	startAll(t, hosts, "--networks=all")
	for _, h := range hosts {
		h.WaitNetwork("blue", "10.20.0.0/16", 1)
	}
	a, b := hosts[0].NewContainerIn("blue"), hosts[1].NewContainerIn("blue")
	reach(t, a, b, 1450)
	eventually(t, "each is refused by name", func() error {
		out, _ := hosts[0].TryOverlayctl("--run-dir", hosts[0].RunDir, "status")
		var missing []string
		for _, name := range []string{"overlaps", "vni", "port", "torn", "swallows"} {
			if !strings.Contains(out, name) {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("status does not name %v:\n%s", missing, out)
		}
		return nil
	})
	for _, name := range []string{"overlaps", "vni", "port", "torn", "swallows"} {
		if _, err := os.Stat(hosts[0].subnetFileOf(name)); err == nil {
			t.Errorf("%s is joined", name)
		}
	}
	// One whose reason goes away is joined.
	for _, name := range []string{"port", "overlaps", "torn", "swallows"} {
		hosts[0].Overlayctl("network", "delete", name)
	}
	hosts[0].Overlayctl("-N", "vni", "network", "set", `{"Network":"10.21.0.0/16","Backend":{"Type":"vxlan","VNI":12}}`)
	for _, h := range hosts {
		h.WaitNetwork("vni", "10.21.0.0/16", 1)
	}
}

// TestNetworksWithoutEtcd restarts hosts, one with its kernel empty, while etcd is away: they come up with all their networks.
func TestNetworksWithoutEtcd(t *testing.T) {
	t.Parallel()
	lab, _, hosts := severalNetworks(t, 2, "blue 10.20.0.0/16")
	args := []string{"--networks=blue"}
	startAll(t, hosts, args...)
	for _, h := range hosts {
		h.WaitNetwork("blue", "10.20.0.0/16", 1)
	}
	plain := []*Container{hosts[0].NewContainer(), hosts[1].NewContainer()}
	blue := []*Container{hosts[0].NewContainerIn("blue"), hosts[1].NewContainerIn("blue")}
	reach(t, blue[0], blue[1], 1450)
	lab.etcd.Kill()
	for i, h := range hosts {
		h.Daemon.Kill()
		if i == 0 {
			h.Exec("sh", "-c", "ip link del overlay.1; ip link del overlay.2; nft flush ruleset")
		}
		h.Start(args...)
	}
	for _, h := range hosts {
		h.WaitReady()
		h.WaitNetwork("blue", "10.20.0.0/16", 1)
	}
	reach(t, plain[0], plain[1], 1450)
	reach(t, blue[0], blue[1], 1450)
	for _, p := range plain {
		for _, b := range blue {
			apart(t, p, b)
		}
	}
}
