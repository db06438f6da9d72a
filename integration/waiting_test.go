package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// TestUnfitHostWaits has hosts that cannot serve the network that is in etcd: overlayd says why, and serves it when it can.
func TestUnfitHostWaits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, backend string
		args          []string
		spoil         []string // a command
		want          []string // what the log says
		mend          func(*Host, *Segment)
	}{
		{"no such interface", "vxlan", []string{"--iface=eth7"}, nil, []string{"eth7"},
			func(h *Host, s *Segment) { s.Plug(h.Node, "eth7", 17) }},
		{"no interface matches", "vxlan", []string{"--iface-regex=^wlan"}, nil, []string{"^wlan"},
			func(h *Host, s *Segment) { s.Plug(h.Node, "wlan0", 17) }},
		{"interface without address", "vxlan", []string{"--iface=eth0"}, []string{"ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"},
			[]string{"eth0", "IPv6"}, func(h *Host, s *Segment) { h.Exec("ip", "address", "add", s.Addrs(17)[1].String(), "dev", "eth0") }},
		{"no default route", "vxlan", nil, []string{"ip", "-4", "route", "delete", "default"}, []string{"default route"},
			func(h *Host, s *Segment) { h.Exec("ip", "route", "add", "default", "dev", "eth0") }},
		{"host-gw behind NAT", "host-gw", []string{"--public-ip=203.0.113.9"}, nil, []string{"host-gw", "203.0.113.9"},
			func(h *Host, s *Segment) { h.Exec("ip", "address", "add", "203.0.113.9/24", "dev", "eth0") }},
		{"underlay MTU too small", "vxlan", nil, []string{"ip", "link", "set", "eth0", "mtu", "1280"}, []string{"MTU", "1280"},
			func(h *Host, s *Segment) { h.Exec("ip", "link", "set", "eth0", "mtu", "1500") }},
		{"port taken by a foreign vxlan", "vxlan", nil,
			[]string{"sh", "-c", "ip link add foreign type vxlan external dstport 8472 && ip link set foreign up"},
			[]string{"8472", "foreign"}, func(h *Host, s *Segment) { h.Exec("ip", "link", "delete", "foreign") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"`+c.backend+`"}`)
			h := lab.NewHost(wire, 11)
			if c.spoil != nil {
				h.Exec(c.spoil...)
			}
			before := h.Dump()
			h.Start(c.args...)
			notReadyButSays(t, h, append(c.want, "this host cannot serve the network yet")...)
			sameDump(t, h.Node, before)
			if keys := lab.Keys(subnetsPrefix); len(keys) != 0 {
				t.Errorf("leases %v in etcd", keys)
			}
			c.mend(h, wire)
			h.WaitReady()
		})
	}
}

// TestAddressComesLate boots hosts that get their link, address and default route after overlayd began: one that has been
// there before, and one that is new and knows nothing before it reaches etcd.
func TestAddressComesLate(t *testing.T) {
	t.Parallel()
	for _, s := range stacks {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, s.Stack, `{"Type":"vxlan"}`)
			hosts := lab.NewHosts(wire, 2)
			startAll(t, hosts)
			hosts[0].Daemon.Stop(syscall.SIGTERM)
			hosts[0].reboot(wire, 11)
			late := []*Host{hosts[0], lab.NewHost(wire, 13)}
			for _, h := range late {
				h.Exec("ip", "address", "flush", "dev", "eth0")
				h.Exec("ip", "link", "set", "eth0", "down")
				h.Start()
			}
			notReadyButSays(t, late[0], "this host cannot serve the network yet", "default route")
			notReadyButSays(t, late[1], "2379")
			for i, h := range late {
				h.Exec("ip", "link", "set", "eth0", "up")
				wire.Address(h.Node, "eth0", []int{11, 13}[i])
				wire.DefaultRoute(h.Node, "eth0")
			}
			for _, h := range late {
				h.WaitPeers(2)
			}
			if keys := lab.Keys(subnetsPrefix); len(keys) != 3 {
				t.Errorf("three hosts have the leases %v", keys)
			}
			a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
			eventually(t, "packets pass", func() error { return pingAll(a, b) })
		})
	}
}

// TestSecondDaemon starts overlayd again on the directories of one that runs, and on its state directory alone.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	h := lab.NewHost(wire, 11)
	h.Start()
	h.WaitReady()
	before, files := h.Dump(), fmt.Sprint(filesUnder(t, h.RunDir))
	for named, args := range map[string][]string{h.RunDir: nil, h.State: {"--run-dir=" + t.TempDir()}} {
		out, code := h.Once(append(args, "--http=")...)
		if code != 1 || !strings.Contains(out, named) || strings.Count(out, "\n") != 1 {
			t.Errorf("exit code %d, want 1 and one line that names %s:\n%s", code, named, out)
		}
	}
	sameDump(t, h.Node, before)
	if now := fmt.Sprint(filesUnder(t, h.RunDir)); now != files {
		t.Errorf("files in the run directory are %s, want %s", now, files)
	}
	if status, body, err := h.Get("http://127.0.0.1:9417/readyz"); err != nil || status != 200 {
		t.Errorf("the first overlayd is not ready any more: status %d, %v: %s", status, err, body)
	}
}

// notReadyButSays waits until overlayd's log has every text, and checks that it runs and is not ready.
func notReadyButSays(t *testing.T, h *Host, texts ...string) {
	t.Helper()
	eventually(t, "overlayd says what it waits for", func() error {
		if !h.Daemon.Running() {
			t.Fatal("overlayd ended")
		}
		status, body, err := h.Get("http://127.0.0.1:9417/readyz")
		if err != nil {
			return err
		}
		if status != 503 {
			t.Fatalf("/readyz has status %d: %s", status, body)
		}
		for _, text := range texts {
			if !strings.Contains(h.Daemon.Output.String(), text) {
				return fmt.Errorf("no word of %q", text)
			}
		}
		return nil
	})
}

// TestNoEtcd starts overlayd before etcd.
func TestNoEtcd(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	h := lab.NewHost(wire, 11)
	before := h.Dump()
	h.Start()
	notReadyButSays(t, h, "172.30.1.100:2379")
	sameDump(t, h.Node, before)
	lab.StartEtcd()
	lab.Put(configKey, lab.Config(`{"Type":"vxlan"}`))
	h.WaitReady()
}

// TestNoNetwork starts overlayd before there is a network config, and does what it says.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{}`)
	lab.Delete(configKey)
	h := lab.NewHost(wire, 11)
	before := h.Dump()
	h.Start()
	notReadyButSays(t, h, configKey, "overlayctl network set")
	sameDump(t, h.Node, before)
	h.Overlayctl("network", "set", overlayV4)
	h.WaitReady()
}

// TestBadNetworkInEtcd has somebody put nonsense under the config key: before the start it is named and waited
// out, and while the network is up it changes nothing.
func TestBadNetworkInEtcd(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	stream := NewStream(a, b)
	lab.Put(configKey, `{"Network":"10.5.0.0/99"}`)
	stream.Pass(500)
	late := lab.NewHost(wire, 13)
	late.Start()
	eventually(t, "the late host names what is wrong", func() error {
		if out := late.Daemon.Output.String(); !strings.Contains(out, "10.5.0.0/99") {
			return fmt.Errorf("no word of it in\n%s", out)
		}
		return nil
	})
	late.Daemon.Kill()
	lab.Put(configKey, lab.Config(`{"Type":"vxlan"}`))
	late.Start()
	late.WaitReady()
	late.WaitPeers(2)
	stream.Stop()
}

// TestGarbageInEtcd puts keys and values that are no leases beside the leases: they cost no peer its place.
func TestGarbageInEtcd(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	stream := NewStream(a, b)
	for key, value := range map[string]string{
		"hello":          "world",
		"10.5.1.0-24hi":  `{"PublicIP":"172.30.1.90"}`,
		"10.99.1.0-24":   `{"PublicIP":"172.30.1.91","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}`,
		"10.5.0.0-16":    `{"PublicIP":"172.30.1.92","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}`,
		"10.5.0.0-25":    `{"PublicIP":`, // what no host can have
		"10.5.0.128-25":  `{"PublicIP":"172.30.1.93","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"garbage"}}`,
		"10.5.252.0-24/": `{}`,
	} {
		lab.Put(subnetsPrefix+key, value)
	}
	stream.Pass(1000)
	hosts[0].Daemon.Stop(syscall.SIGTERM)
	hosts[0].Start()
	hosts[0].WaitReady()
	stream.Pass(250)
	for _, h := range hosts {
		h.WaitPeers(1)
	}
	stream.Stop()
}
