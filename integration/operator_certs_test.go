package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// certified are the flags by which a host shows a certificate of the directory dir.
func certified(dir, name string) []string {
	return []string{"--etcd-cafile=" + filepath.Join(dir, "ca.crt"),
		"--etcd-certfile=" + filepath.Join(dir, name+".crt"), "--etcd-keyfile=" + filepath.Join(dir, name+".key")}
}

// TestFirstMinutesEmbedded makes a network out of two empty machines: certificates, etcd in the first host's overlayd,
// mutual TLS. Who has no certificate of theirs is kept out, and told why.
func TestFirstMinutesEmbedded(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	hosts := lab.NewHosts(wire, 2)
	serve := netip.AddrPortFrom(hosts[0].Addrs[0], 2379).String()
	lab.etcdURL = "https://" + serve
	pki := filepath.Join(t.TempDir(), "pki")

	hosts[0].Overlayctl("certs", "init", pki)
	for i, h := range hosts {
		hosts[0].Overlayctl("certs", "issue", pki, fmt.Sprintf("host-%d", i+1), "--ip", h.Addrs[0].String())
	}
	hosts[0].Start(append(certified(pki, "host-1"), "--etcd-embedded", "--etcd-embedded-listen="+serve,
		"--network="+overlayV4, "--ip-masq")...)
	hosts[1].Start(append(certified(pki, "host-2"), "--ip-masq")...)
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(1)
	}
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	reach(t, a, b, 1450)
	if out := hosts[1].Overlayctl(append(certified(pki, "host-2"), "leases", "list")...); strings.Count(out, "\n") != 3 {
		t.Errorf("not a header and two leases:\n%s", out)
	}

	const other = `{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}`
	if out, err := hosts[1].TryOverlayctl(append(certified(pki, "host-2"), "network", "set", other)...); err == nil || !strings.Contains(err.Error(), "only operators may") {
		t.Errorf("a host sets the network: %s, %v", out, err)
	}
	hosts[0].Exec(append([]string{bin("overlayctl"), "--config=/dev/null", "--etcd-embedded", "--run-dir=" + hosts[0].RunDir},
		append(certified(pki, "host-1"), "network", "set", other)...)...)
	if levels, texts, _ := hosts[1].doctor(certified(pki, "host-2")...); levels["etcd access"] != "ok" {
		t.Errorf("doctor: %s: %s", levels["etcd access"], texts["etcd access"])
	}

	foreign := filepath.Join(t.TempDir(), "pki")
	hosts[0].Overlayctl("certs", "init", foreign)
	hosts[0].Overlayctl("certs", "issue", foreign, "mallory")
	mallory := certified(foreign, "mallory")
	mallory[0] = certified(pki, "")[0] // the server is the right one for it
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no certificate", certified(pki, "")[:1], "etcd asks for a client certificate"},
		{"another CA's certificate", mallory, "etcd would refuse the client certificate"},
		{"another CA", certified(foreign, "mallory"), "certificate signed by unknown authority"},
		{"no CA", nil, "certificate signed by unknown authority"},
	} {
		_, err := hosts[1].TryOverlayctl(append(test.args, "leases", "list")...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", test.name, err, test.want)
		} else {
			t.Logf("%s: %v", test.name, err)
		}
	}
	late := lab.NewHost(wire, 13)
	late.Start(certified(pki, "")[0])
	notReadyButSays(t, late, "etcd asks for a client certificate")
}

// TestFirstMinutesExistingEtcd begins with an etcd that is empty: one command makes the network, before or after the
// hosts are started.
func TestFirstMinutesExistingEtcd(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	lab.NewEtcd(wire)
	lab.StartEtcd()
	hosts := lab.NewHosts(wire, 2)
	hosts[0].Start("--ip-masq")
	hosts[1].Overlayctl("network", "set", "10.5.0.0/16")
	hosts[1].Start("--ip-masq")
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(1)
	}
	reach(t, hosts[0].NewContainer(), hosts[1].NewContainer(), 1450)
}

// TestRenewedCertificates replaces the certificates of a running network, and restarts nothing.
func TestRenewedCertificates(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	first, late := lab.NewHost(wire, 11), lab.NewHost(wire, 12)
	serve := netip.AddrPortFrom(first.Addrs[0], 2379).String()
	lab.etcdURL = "https://" + serve
	pki := filepath.Join(t.TempDir(), "pki")
	first.Overlayctl("certs", "init", pki)
	first.Overlayctl("certs", "issue", pki, "first", "--ip", first.Addrs[0].String())
	first.Start(append(certified(pki, "first"), "--etcd-embedded", "--etcd-embedded-listen="+serve, "--network="+overlayV4)...)
	first.WaitReady()

	before, err := os.ReadFile(filepath.Join(pki, "first.crt"))
	if err != nil {
		t.Fatal(err)
	}
	first.Overlayctl("certs", "renew", pki, "ca")
	first.Overlayctl("certs", "renew", pki, "first")
	after, err := os.ReadFile(filepath.Join(pki, "first.crt"))
	if err != nil || string(after) == string(before) {
		t.Fatalf("nothing was renewed (%v)", err)
	}
	first.Overlayctl("certs", "issue", pki, "late")
	late.Start(certified(pki, "late")...)
	late.WaitReady()
	late.WaitPeers(1)
}
