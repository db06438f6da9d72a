package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestEmbeddedEtcd needs nothing but overlayd: the first host runs etcd and writes the network's configuration.
func TestEmbeddedEtcd(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	first, second := lab.NewHost(wire, 11), lab.NewHost(wire, 12)
	serve := netip.AddrPortFrom(first.Addrs[0], 2379).String()
	flags := []string{"--ip-masq", "--etcd-embedded", "--etcd-embedded-insecure", "--etcd-embedded-listen", serve,
		"--network", lab.Config(`{"Type":"vxlan"}`)}
	lab.etcdURL = "http://" + serve
	first.Start(flags...)
	second.Start("--ip-masq")
	for _, h := range []*Host{first, second} {
		h.WaitReady()
		h.WaitPeers(1)
	}
	a, b := first.NewContainer(), second.NewContainer()
	stream := NewStream(a, b)
	subnets := envValue(t, first, "FLANNEL_SUBNET") + envValue(t, second, "FLANNEL_SUBNET")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if code, _ := first.Daemon.Stop(sig); sig == syscall.SIGTERM && code != 0 {
			t.Errorf("exit code %d", code)
		}
		if log := first.Daemon.Output.String(); strings.Contains(log, "level=ERROR") {
			t.Errorf("an etcd that ends with its daemon is no error:\n%s", log)
		}
		stream.Pass(250)
		first.Start(flags...)
		first.WaitReady()
	}
	second.WaitReady()
	stream.Pass(250)
	stream.Stop()
	if now := envValue(t, first, "FLANNEL_SUBNET") + envValue(t, second, "FLANNEL_SUBNET"); now != subnets {
		t.Errorf("subnets are %s after the restarts, want %s", now, subnets)
	}
	// The configuration that is there wins over the flag.
	first.Overlayctl("network", "set", `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`)
	first.Daemon.Stop(syscall.SIGTERM)
	first.Start(flags...)
	first.WaitReady()
	if mtu := envValue(t, first, "FLANNEL_MTU"); mtu != "1500" {
		t.Errorf("MTU %s, want host-gw's 1500: --network has overwritten the config", mtu)
	}
}

// TestAttackLocalUser tries the etcd of a host whose overlayd was told nothing but to run one: there is no port, and nobody
// but its user and root may use the socket; with an address it does not start, and says what to do.
func TestAttackLocalUser(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	h := lab.NewHost(lab.NewSegment(1), 11)
	lab.etcdURL = "unix://" + filepath.Join(h.RunDir, "etcd.sock")
	for _, at := range []string{"127.0.0.1:2379", h.Addrs[0].String() + ":2379"} {
		out, code := h.Once("--etcd-embedded", "--etcd-embedded-listen="+at)
		if want := "without certificates who reaches " + at + " can take any subnet: let overlayctl init"; code != 1 || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
			t.Errorf("exits with %d and says\n%s, want a line with %q", code, out, want)
		}
	}
	h.Start("--etcd-embedded", "--network", overlayV4)
	h.WaitReady()
	if out := h.Exec("ss", "-Hltnp", "sport = :2379"); out != "" {
		t.Errorf("somebody listens:\n%s", out)
	}
	if err := os.Chmod(h.RunDir, 0o755); err != nil { // as /run/overlayd is
		t.Fatal(err)
	}
	for dir := filepath.Dir(h.RunDir); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ask := fmt.Sprintf("setpriv --reuid=nobody --regid=nogroup --clear-groups %s --etcd-endpoints %s network set 10.6.0.0/16", bin("overlayctl"), lab.etcdURL)
	if out, err := h.Try("sh", "-c", ask); err == nil || !strings.Contains(out+err.Error(), "permission denied") {
		t.Errorf("a local user: %s, %v", out, err)
	}
	h.Overlayctl("network", "get")
}

// TestOpenNetworkIsClosed gives an open network certificates, host by host as docs/real-hosts.md says, etcd's first: no packet is
// lost, each has the subnet that it had, and nobody comes without a certificate any more.
func TestOpenNetworkIsClosed(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	hosts := lab.NewHosts(wire, 3)
	serve := netip.AddrPortFrom(hosts[0].Addrs[0], 2379).String()
	embedded := []string{"--etcd-embedded", "--etcd-embedded-listen=" + serve, "--network=" + overlayV4}
	lab.etcdURL = "http://" + serve
	hosts[0].Start(append(embedded, "--etcd-embedded-insecure")...)
	hosts[1].Start()
	hosts[2].Start()
	before := map[*Host]string{}
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(2)
		before[h] = envValue(t, h, "FLANNEL_SUBNET")
	}
	stream, other := NewStream(hosts[0].NewContainer(), hosts[1].NewContainer()), NewStream(hosts[1].NewContainer(), hosts[2].NewContainer())
	pki := filepath.Join(t.TempDir(), "pki")
	hosts[0].Overlayctl("certs", "init", pki)
	lab.etcdURL = "https://" + serve
	for i, h := range hosts {
		name := fmt.Sprint("host-", i)
		hosts[0].Overlayctl("certs", "issue", pki, name, "--ip", h.Addrs[0].String())
		h.Daemon.Stop(syscall.SIGTERM)
		stream.Pass(100)
		if flags := certified(pki, name); i == 0 {
			h.Start(append(flags, embedded...)...)
		} else {
			h.Start(flags...)
		}
		h.WaitReady()
		stream.Pass(100)
		other.Pass(100)
	}
	for i, h := range hosts {
		eventually(t, h.Name+" follows etcd", func() error { // all, over TLS
			if out := h.Overlayctl(append(certified(pki, fmt.Sprint("host-", i)), "leases", "list")...); strings.Count(out, "\n") != 4 {
				return fmt.Errorf("not a header and three leases: %s", out)
			}
			return nil
		})
		h.WaitPeers(2)
		if now := envValue(t, h, "FLANNEL_SUBNET"); now != before[h] {
			t.Errorf("%s has %s, had %s", h.Name, now, before[h])
		}
	}
	if out, err := hosts[1].TryOverlayctl("--etcd-endpoints=http://"+serve, "leases", "list"); err == nil {
		t.Errorf("without a certificate: %s", out)
	}
	stream.Stop()
	other.Stop()
}
