package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// TestUnfitHost has networks that the host cannot serve: overlayd learns of them from etcd, and ends.
func TestUnfitHost(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		refusal
		backend string
	}{
		{refusal{name: "no such interface", args: []string{"--iface=eth7"}, want: []string{"eth7"}}, `{"Type":"vxlan"}`},
		{refusal{name: "no interface matches", args: []string{"--iface-regex=^wlan"}, want: []string{"^wlan"}}, `{"Type":"vxlan"}`},
		{refusal{name: "interface without address", args: []string{"--iface=eth0"},
			prep: command("ip", "-6", "address", "flush", "dev", "eth0", "scope", "global"),
			want: []string{"eth0", "IPv6"}}, `{"Type":"vxlan"}`},
		{refusal{name: "no default route", prep: command("ip", "-4", "route", "delete", "default"),
			want: []string{"default route"}}, `{"Type":"vxlan"}`},
		{refusal{name: "host-gw behind NAT", args: []string{"--public-ip=203.0.113.9"},
			want: []string{"host-gw", "203.0.113.9"}}, `{"Type":"host-gw"}`},
		{refusal{name: "underlay MTU too small", prep: command("ip", "link", "set", "eth0", "mtu", "1280"),
			want: []string{"MTU", "1280"}}, `{"Type":"vxlan"}`},
		{refusal{name: "port taken by a foreign vxlan",
			prep: command("sh", "-c", "ip link add foreign type vxlan external dstport 8472 && ip link set foreign up"),
			want: []string{"8472", "foreign"}}, `{"Type":"vxlan"}`},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true, V6: true}, r.backend)
			r.code = 1
			r.check(t, lab.NewHost(wire, 11), t.TempDir())
			if keys := lab.Keys(subnetsPrefix); len(keys) != 0 {
				t.Errorf("leases %v left in etcd", keys)
			}
		})
	}
}

func command(args ...string) func(*Host, string) {
	return func(h *Host, _ string) { h.Exec(args...) }
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
