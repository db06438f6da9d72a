package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// fastPath is what overlayctl fast-path says.
type fastPath struct {
	Mode, Off         string
	Peers, Containers int
	Slow              []struct{ IP, Why string }
	Packets           map[string]uint64
}

// fastPath asks the host's daemon.
func (h *Host) fastPath() (f fastPath) {
	h.t.Helper()
	if err := json.Unmarshal([]byte(h.Overlayctl("fast-path", "--run-dir", h.RunDir, "-o", "json")), &f); err != nil {
		h.t.Fatal(err)
	}
	return f
}

// waitFast waits until the host has as many peers and containers, each address of which is fast but some.
func (h *Host) waitFast(peers, containers, slow int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%s has %d peers and %d containers on the fast path", h.Name, peers, containers), func() error {
		if f := h.fastPath(); f.Off != "" || f.Peers != peers || f.Containers != containers || len(f.Slow) != slow {
			return fmt.Errorf("%+v", f)
		}
		return nil
	})
}

// waitOff waits until nothing is fast on the host, for this reason.
func (h *Host) waitOff(why string) {
	h.t.Helper()
	eventually(h.t, "the fast path is off on "+h.Name, func() error {
		if f := h.fastPath(); !strings.Contains(f.Off, why) || f.Off == "" {
			return fmt.Errorf("off: %q, want %q", f.Off, why)
		}
		return nil
	})
}

// fast are the packets that took the fast path on the host while f ran.
func (h *Host) fast(f func()) uint64 {
	h.t.Helper()
	before := h.fastPath().Packets
	f()
	after := h.fastPath().Packets
	return after["sent"] + after["received"] - before["sent"] - before["received"]
}

// TestFastPath has containers of two hosts talk by it, and takes away what it needs, one after the other, without losing a
// packet.
func TestFastPath(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	a, b := hosts[0], hosts[1]
	startAll(t, hosts)
	x, y := a.NewContainer(), b.NewContainer()
	a.waitFast(2, 1, 0)
	b.waitFast(2, 1, 0)
	for i, dst := range y.Addrs {
		var seen netip.Addr
		var err error
		fast := a.fast(func() { seen, err = x.Transfer(y.Node, dst, 8<<20) })
		if err != nil || seen != x.Addrs[i] || fast < 100 {
			t.Errorf("transfer to %s: seen as %s, %v, %d packets by the fast path", dst, seen, err, fast)
		}
	}
	if out := a.Exec(bin("overlayctl"), "--config=/dev/null", "--run-dir="+a.RunDir, "peers"); !strings.Contains(out, "/") {
		t.Errorf("peers: %s", out)
	}
	status, body, err := a.Get("http://127.0.0.1:9417/metrics")
	if err != nil || status != 200 || !strings.Contains(body, `overlayd_fastpath_packets_total{way="sent"} `) {
		t.Errorf("metrics: %d, %v", status, err)
	}

	all := newTraffic(x, y)
	goes := func(name string, fast bool) {
		t.Helper()
		n := a.fast(func() { all.lossless(name, func() { all.streams[0].Pass(300) }) })
		if (n > 100) != fast {
			t.Errorf("%s: %d packets by the fast path", name, n)
		}
	}
	goes("on", true)
	all.lossless("switched off", func() {
		a.Overlayctl("fast-path", "off", "--run-dir", a.RunDir)
		a.waitOff("switched off")
	})
	goes("off", false)
	all.lossless("switched on", func() {
		a.Overlayctl("fast-path", "auto", "--run-dir", a.RunDir)
		a.waitFast(2, 1, 0)
	})
	goes("on again", true)
	all.lossless("a rule for later packets", func() {
		a.Exec("nft", "add table inet fw; add chain inet fw later { type filter hook forward priority 0; }; add rule inet fw later limit rate over 9000000/second drop")
		a.waitOff("inet fw")
	})
	goes("with the rule", false)
	all.lossless("whatever rules there are", func() {
		a.Overlayctl("fast-path", "on", "--run-dir", a.RunDir)
		a.waitFast(2, 1, 0)
	})
	all.lossless("the rule is gone", func() {
		a.Overlayctl("fast-path", "auto", "--run-dir", a.RunDir)
		a.Exec("nft", "delete", "table", "inet", "fw")
		a.waitFast(2, 1, 0)
	})
	all.lossless("killed", func() { a.Daemon.Stop(syscall.SIGKILL); all.streams[0].Pass(300) })
	all.lossless("started again", func() {
		a.Start()
		a.WaitReady()
		a.waitFast(2, 1, 0)
	})
	goes("after the start", true)
	all.lossless("stopped and started", func() {
		a.Daemon.Stop(syscall.SIGTERM)
		all.streams[0].Pass(100)
		a.Start()
		a.WaitReady()
		a.waitFast(2, 1, 0)
	})
	all.stop()
}

// A container that ptp has attached is fast, too; one with a shaper on its link is not, for as long as that is there.
func TestFastPathPTP(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	a, b := hosts[0], hosts[1]
	conf := a.PluginConf(map[string]any{"type": "ptp"})
	conf["ipam"] = map[string]any{"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}}}
	a.SetConf(map[string]any{"cniVersion": "1.1.0", "name": "overlay", "plugins": []any{conf}})
	startAll(t, hosts)
	x, y := a.NewContainer(), b.NewContainer()
	goes := func(fast bool) {
		t.Helper()
		for _, dst := range y.Addrs {
			var err error
			if n := a.fast(func() { _, err = x.Transfer(y.Node, dst, 4<<20) }); err != nil || (n > 100) != fast {
				t.Errorf("transfer to %s: %v, %d packets by the fast path", dst, err, n)
			}
		}
	}
	a.waitFast(2, 1, 0)
	b.waitFast(2, 1, 0)
	goes(true)
	link := strings.Fields(a.Exec("ip", "-br", "link", "show", "type", "veth"))
	for i, word := range link {
		if name, _, ok := strings.Cut(word, "@"); ok && !strings.HasPrefix(name, "eth0") {
			link = link[i:]
			link[0] = name
			break
		}
	}
	a.Exec("tc", "qdisc", "add", "dev", link[0], "root", "pfifo")
	a.waitFast(2, 1, 2)
	goes(false)
	a.Exec("tc", "qdisc", "del", "dev", link[0], "root")
	a.waitFast(2, 1, 0)
	goes(true)
}

// An address that comes again is the new container's, on its link, and a container that is gone gets nothing.
func TestFastPathAddressComesAgain(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	a, b := hosts[0], hosts[1]
	startAll(t, hosts)
	x, y := a.NewContainer(), b.NewContainer()
	stay := b.NewContainer()
	a.waitFast(1, 1, 0)
	b.waitFast(1, 2, 0)
	for range 3 {
		addr := y.Addrs[0]
		y.Detach()
		b.waitFast(1, 1, 0)
		y.Attach() // with the address that it had, or the next
		b.waitFast(1, 2, 0)
		if fast := b.fast(func() {
			if _, err := x.Transfer(y.Node, y.Addrs[0], 4<<20); err != nil {
				t.Error(err)
			}
			if _, err := x.Transfer(stay.Node, stay.Addrs[0], 4<<20); err != nil {
				t.Error(err)
			}
		}); fast < 100 {
			t.Errorf("after %s came again as %s: %d packets by the fast path", addr, y.Addrs[0], fast)
		}
	}
	// A peer that is gone is gone at once, and back when it comes.
	b.Daemon.Stop(syscall.SIGTERM)
	for key := range lab.Keys(subnetsPrefix) {
		if strings.Contains(key, near(y.Addrs[0], 0).String()+"-") {
			lab.Delete(key)
		}
	}
	eventually(t, "the peer is gone", func() error {
		if f := a.fastPath(); f.Peers != 0 {
			return errors.New("it is there")
		}
		return nil
	})
	b.Start()
	b.WaitReady()
	a.waitFast(1, 1, 0)

}
