package integration

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// both are the families that a network has at once, where a test wants both.
var both = Stack{V4: true, V6: true}

// TestNetworkChangesLoseNothing moves a whole network from one data path to another, by a command, while containers
// talk: hosts follow at slightly different times, and each goes on receiving in the old way.
func TestNetworkChangesLoseNothing(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	x := newTraffic(hosts[0].NewContainer(), hosts[1].NewContainer())
	for _, to := range []struct{ name, backend, path string }{
		{"direct routing on", `{"Type":"vxlan","DirectRouting":true}`, "dev eth0"},
		{"direct routing off", `{"Type":"vxlan"}`, ".1 metric"},
		{"vxlan to host-gw", `{"Type":"host-gw"}`, "dev eth0"},
		{"host-gw to vxlan", `{"Type":"vxlan"}`, ".1 metric"},
		{"another VNI", `{"Type":"vxlan","VNI":2}`, ".2 metric"},
		{"another VNI and port", `{"Type":"vxlan","VNI":3,"Port":4789}`, ".3 metric"},
	} {
		x.lossless(to.name, func() { lab.change(hosts, to.backend, to.path) })
	}
	x.lossless("another port", func() { lab.changePort(hosts, "3", "8472") })
	x.lossless("the port before", func() { lab.changePort(hosts, "3", "4789") }) // while its link is still there
	x.lossless("a port that one host follows late", func() {
		hosts[1].Daemon.Signal(syscall.SIGSTOP)
		lab.changePort(hosts[:1], "3", "4790")
		x.streams[0].Pass(100)
		hosts[1].Daemon.Signal(syscall.SIGCONT)
		lab.changePort(hosts, "3", "4790")
	})
	x.lossless("restart while links are old", func() {
		hosts[0].Daemon.Stop(syscall.SIGTERM)
		hosts[0].Start("--ip-masq")
		hosts[0].WaitReady()
	})
	x.lossless("old links removed", func() {
		for _, h := range hosts {
			eventually(t, "the old links are removed", func() error {
				if out := h.Exec("ip", "-br", "link", "show", "type", "vxlan"); strings.Count(out, "\n") != 2 {
					return fmt.Errorf("%q", out)
				}
				return nil
			})
			if fdb := h.Exec("bridge", "fdb", "show"); strings.Contains(fdb, " port ") {
				t.Errorf("%s sends to the port of before: %s", h.Name, fdb)
			}
		}
	})
	x.stop()
}

// change sets the network's backend on one host and waits until all route to their peers by the path, in each family.
func (l *Lab) change(hosts []*Host, backend, path string) {
	l.t.Helper()
	hosts[0].Overlayctl("network", "set", l.Config(backend))
	for _, h := range hosts {
		for _, family := range l.families() {
			eventually(l.t, h.Name+" follows", func() error {
				show := h.Exec("ip", family, "route", "show", "proto", "111")
				if !strings.Contains(show, path) {
					return fmt.Errorf("%q", show)
				}
				return nil
			})
		}
		h.waitWell()
	}
}

// changePort sets the port of a vxlan network on one host and waits until all route to their peers by a link that has it.
func (l *Lab) changePort(hosts []*Host, vni, port string) {
	l.t.Helper()
	hosts[0].Overlayctl("network", "set", l.Config(fmt.Sprintf(`{"Type":"vxlan","VNI":%s,"Port":%s}`, vni, port)))
	for _, h := range hosts {
		for _, family := range l.families() {
			eventually(l.t, h.Name+" follows", func() error {
				route := h.Exec("ip", family, "route", "show", "proto", "111")
				_, link, _ := strings.Cut(route, " dev ")
				link, _, _ = strings.Cut(link, " ")
				show, err := h.Try("ip", "-d", "link", "show", link)
				if err == nil && !strings.Contains(show, "dstport "+port+" ") {
					err = fmt.Errorf("%q by %q", route, show)
				}
				return err
			})
		}
		h.waitWell()
	}
}

// TestTakeoverAndBack starts overlayd in flanneld's place, and flanneld in overlayd's.
func TestTakeoverAndBack(t *testing.T) {
	t.Parallel()
	_, us, old := newTakeover(t)
	x := newTraffic(us.NewContainer(), old.NewContainer())
	if err := os.Remove(old.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	x.lossless("from flannel", func() {
		old.Start("--ip-masq")
		old.WaitReady()
	})
	x.lossless("back to flannel", func() {
		old.Daemon.Stop(syscall.SIGTERM)
		old.flannelAgain(us)
	})
	x.lossless("from flannel again", func() {
		old.Start("--ip-masq")
		old.WaitReady()
	})
	x.stop()
}

// flannelAgain does what flanneld does on a host that has its links: it finds the lease by the host's address, and puts
// its own routes beside those that overlayd left, which it does not know. Those go with an operator's command.
func (h *Host) flannelAgain(peer *Host) {
	h.t.Helper()
	h.flannelClaim("vxlan")
	h.flannelReach("vxlan", peer)
	for _, family := range h.lab.families() {
		h.Exec("ip", family, "route", "flush", "proto", "111")
	}
}

// TestNewVersionLosesNothing replaces the daemon by one of another version, and by the old one again.
func TestNewVersionLosesNothing(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	x := newTraffic(hosts[0].NewContainer(), hosts[1].NewContainer())
	next := t.TempDir() + "/overlayd"
	run(t, "go", "build", "-ldflags", "-X "+module+"cmd/internal/version.number=next", "-o", next, "../cmd/overlayd")
	for _, binary := range []string{next, bin("overlayd")} {
		x.lossless("start of "+binary, func() {
			hosts[0].Daemon.Stop(syscall.SIGTERM)
			args := hosts[0].Args("--ip-masq")
			for i, a := range args {
				if a == bin("overlayd") {
					args[i] = binary
				}
			}
			hosts[0].Daemon = hosts[0].Spawn("overlayd on "+hosts[0].Name, nil, args...)
			hosts[0].WaitReady()
		})
	}
	x.stop()
}
