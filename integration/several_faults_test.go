package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// wantStage waits until the daemon says of a named network what its problem is.
func (h *Host) wantStage(name, says string) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%s says of network %s: %s", h.Name, name, says), func() error {
		n, err := h.named(name)
		if err == nil && (n.Ready || !strings.Contains(n.Stage+strings.Join(n.Problems, "; "), says)) {
			err = fmt.Errorf("ready %t: %s: %q", n.Ready, n.Stage, n.Problems)
		}
		return err
	})
}

// Networks of one VNI, of ranges that overlap, and one that is not there: each is refused by name, and the others are served; so they
// are once it is mended, with etcd away, and after the daemon was killed.
func TestNetworksInEachOthersWay(t *testing.T) {
	t.Parallel()
	l, s := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	l.putNetwork("blue", vxlanOf(blueV4, 7))
	l.putNetwork("red", vxlanOf("10.7.0.0/16", 7))
	l.putNetwork("wide", vxlanOf("10.5.0.0/17", 9))
	l.putNetwork("bad", `{"Network":"10.9.0.0/16","Backend":{"Type":"geneve"}}`)
	hosts := l.NewHosts(s, 2)
	a, b := hosts[0], hosts[1]
	const names = "--networks=blue,red,wide,bad,absent"
	a.Start(names)
	b.Start(names)
	for _, h := range hosts {
		h.WaitReady() // though some are refused
		h.waitNamed("blue", 1)
		h.wantStage("red", "network blue is on this host")
		h.wantStage("wide", "network default is on this host")
		h.wantStage("bad", `"geneve" is not a backend`)
		h.wantStage("absent", "no network config")
	}
	if out := a.Exec("ip", "route"); strings.Contains(out, "10.7.") {
		t.Errorf("something of red is there:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(a.RunDir, "red", "subnet.env")); err == nil {
		t.Error("runtimes are offered a subnet of red")
	}
	l.Put("/coreos.com/network/red/config", vxlanOf("10.7.0.0/16", 8))
	l.putNetwork("absent", `{"Network":"10.8.0.0/16","Backend":{"Type":"host-gw"}}`)
	for _, h := range hosts {
		h.waitNamed("red", 1)
		h.waitNamed("absent", 1)
	}
	var plain, red []*Container
	for _, h := range hosts {
		plain = append(plain, h.NewContainer())
		h.in("red")
		red = append(red, h.NewContainer())
	}
	whole := func() {
		t.Helper()
		wantReach(t, plain, plain, true, false)
		wantReach(t, red, red, true, false)
		wantReach(t, plain, red, false, false)
	}
	whole()

	l.StopEtcd()
	a.Daemon.Stop(syscall.SIGKILL)
	whole()
	a.Start("--networks=all") // what it was in it knows
	a.WaitReady()
	eventually(t, "red is served from memory", func() error {
		n, err := a.named("red")
		if err == nil && !n.Ready {
			err = fmt.Errorf("%s", n.Stage)
		}
		return err
	})
	whole()
	l.ResumeEtcd()
	a.waitNamed("red", 1)
	a.waitNamed("blue", 1)
	whole()

	// A host that is told of fewer networks has nothing left of the others, and runtimes are refused.
	a.Daemon.Stop(syscall.SIGTERM)
	a.Start("--networks=blue")
	a.WaitReady()
	a.waitNamed("blue", 1)
	if _, err := os.Stat(filepath.Join(a.RunDir, "red", "subnet.env")); err == nil {
		t.Error("runtimes are still offered a subnet of red")
	}
	eventually(t, "nothing is left of red", func() error {
		if out := a.Exec("ip", "route", "show", "proto", "111"); strings.Contains(out, "10.7.") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	a.Daemon.Stop(syscall.SIGTERM)
	out, code := a.Once("--networks=all", "--cleanup")
	if code != 0 {
		t.Errorf("--cleanup: %d: %s", code, out)
	}
	for _, what := range []string{a.Exec("ip", "-d", "link", "show", "type", "vxlan"), a.Exec("sh", "-c", "ip route show proto 111"), a.Exec("nft", "list", "tables")} {
		if strings.Contains(what, "overlay") || strings.Contains(what, "10.7.") {
			t.Errorf("--cleanup left\n%s", what)
		}
	}
	if keys := l.Keys("/coreos.com/network/red/subnets/"); len(keys) != 1 {
		t.Errorf("leases of red after --cleanup on one of two hosts: %v", keys)
	}
}

// Two networks of wireguard on two hosts: each has links, ports and keys of its own.
func TestSeveralNetworksOfWireGuard(t *testing.T) {
	t.Parallel()
	l, s := newWire(t, Stack{V4: true}, `{"Type":"wireguard"}`)
	l.putNetwork("blue", `{"Network":"10.6.0.0/16","Backend":{"Type":"wireguard","ListenPort":51830,"ListenPortV6":51831}}`)
	hosts := l.NewHosts(s, 2)
	var plain, blue []*Container
	for _, h := range hosts {
		h.Start("--networks=blue")
	}
	for _, h := range hosts {
		h.WaitReady()
		h.waitNamed("blue", 1)
		h.Exec("ip", "link", "show", "ovw-blue")
		plain = append(plain, h.NewContainer())
		h.in("blue")
		blue = append(blue, h.NewContainer())
	}
	wantReach(t, plain, plain, true, true)
	wantReach(t, blue, blue, true, true)
	wantReach(t, plain, blue, false, false)
	wantReach(t, blue, plain, false, false)
	keys := map[string]bool{}
	for _, h := range hosts {
		for _, file := range []string{"wireguard.key", "networks/blue/wireguard.key"} {
			key, err := os.ReadFile(filepath.Join(h.State, file))
			if err != nil || keys[string(key)] {
				t.Errorf("%s has no key of its own in %s: %v", h.Name, file, err)
			}
			keys[string(key)] = true
		}
	}
	a := hosts[0]
	a.Daemon.Stop(syscall.SIGKILL)
	a.Start("--networks=blue")
	a.WaitReady()
	a.waitNamed("blue", 1)
	wantReach(t, blue, blue, true, true)
	l.Put("/coreos.com/network/overlayd/peered/blue,default", "{}")
	wantReach(t, plain, blue, true, true)
}
