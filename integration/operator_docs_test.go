package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// document is the fenced blocks of a file below docs/, in order, with the hosts' addresses in place of the examples'.
type document struct {
	t      *testing.T
	name   string
	blocks []string
}

func readDocument(t *testing.T, name string, addresses ...string) document {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer(addresses...).Replace(string(data))
	d := document{t: t, name: name}
	inside, indent := false, ""
	for line := range strings.Lines(text) {
		unindented := strings.TrimPrefix(line, "   ") // within a list
		switch {
		case strings.HasPrefix(unindented, "```"):
			if inside = !inside; inside {
				d.blocks, indent = append(d.blocks, ""), strings.TrimSuffix(line, unindented)
			}
		case inside:
			d.blocks[len(d.blocks)-1] += strings.TrimPrefix(line, indent)
		}
	}
	return d
}

// block is the one block that has the text in it.
func (d document) block(with string) string {
	d.t.Helper()
	var found []string
	for _, b := range d.blocks {
		if strings.Contains(b, with) {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		d.t.Fatalf("%d blocks of %s have %q in them, want one", len(found), d.name, with)
	}
	return found[0]
}

// TestDocuments does what the documents say, on machines as a new user has them.
func TestDocuments(t *testing.T) {
	t.Parallel()
	if os.Getenv(binDirEnv) == "" {
		t.Skip("needs root, for which the binaries are built")
	}
	media := t.TempDir()
	deb := makePackages(t, media, "1.0.0").deb
	for name, do := range map[string]func(*testing.T, *Lab, []*Machine){
		"quickstart.md": quickStart, "real-hosts.md": realHosts, "from-flannel.md": fromFlannel,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab, machines := twoMachines(t, media, deb)
			do(t, lab, machines)
		})
	}
}

// twoMachines are machines with the package, at 172.30.1.11 and .12.
func twoMachines(t *testing.T, media, deb string) (*Lab, []*Machine) {
	t.Helper()
	lab := newLab(t, Stack{V4: true})
	wire := lab.NewSegment(1)
	machines := []*Machine{lab.NewMachine(wire, 11, media), lab.NewMachine(wire, 12, media)}
	for _, m := range machines {
		m.In("dpkg", "--install", deb)
	}
	return lab, machines
}

// reachesPeers waits until the machine's overlayctl says that all is well, and that the other answers.
func (m *Machine) reachesPeers() {
	m.t.Helper()
	eventually(m.t, m.Name+" reaches its peers", func() error {
		_, err := m.TryIn("sh", "-ec", "overlayctl status && overlayctl peers | grep -q ' 0% '")
		return err
	})
}

func quickStart(t *testing.T, _ *Lab, machines []*Machine) {
	doc := readDocument(t, "quickstart.md", "192.0.2.1", "172.30.1.11", "192.0.2.2", "172.30.1.12")
	said := machines[0].In("sh", "-ec", doc.block("overlayctl init"))
	join := joinLine.FindStringSubmatch(said)
	if form, _, _ := strings.Cut(strings.TrimSpace(doc.block("overlayctl join")), "ov1."); join == nil || !strings.HasPrefix("overlayctl "+join[1], form) {
		t.Fatalf("init says\n%s\nand the document another command than %q", said, form)
	}
	machines[1].In("sh", "-ec", "overlayctl "+join[1])
	for _, m := range machines {
		m.reachesPeers()
		m.In("sh", "-ec", doc.block("overlayctl peers"))
	}
	if out := machines[0].In("systemctl", "status", "overlayd"); !strings.Contains(out, "serving 10.244.") || !strings.Contains(out, ", 1 peer") {
		t.Errorf("systemctl status says\n%s", out)
	}
	netnsUnits(t, machines)
	machines[1].In("sh", "-ec", "systemctl disable --now overlayd && overlayd --cleanup")
}

// netnsUnits runs a process on the overlay by the units of netns.md.
func netnsUnits(t *testing.T, machines []*Machine) {
	t.Helper()
	doc := readDocument(t, "netns.md")
	m := machines[0]
	m.WriteIn("/etc/systemd/system/overlay-netns@.service", doc.block("ExecStart=/usr/bin/overlayctl netns add %i"))
	m.WriteIn("/etc/systemd/system/web.service", doc.block("NetworkNamespacePath=/run/netns/web"))
	m.In("sh", "-ec", "mkdir -p /var/www && echo hello >/var/www/index.html && systemctl start web")
	address := strings.TrimSpace(m.In("sh", "-ec", "overlayctl netns list | awk '/^web / {print $3}'"))
	eventually(t, "the unit answers at "+address+" on the other host", func() error {
		_, body, err := machines[1].Get("http://" + address + "/")
		if err == nil && body != "hello\n" {
			err = fmt.Errorf("it says %q", body)
		}
		return err
	})
	m.In("systemctl", "stop", "overlay-netns@web")
	if out := m.In("sh", "-c", "systemctl is-active web; overlayctl netns list"); strings.Contains(out, "/run/netns/web") || strings.HasPrefix(out, "active") {
		t.Errorf("after the namespace's unit has stopped:\n%s", out)
	}
}

// realHosts goes the first of the document's ways, with certificates by hand.
func realHosts(t *testing.T, _ *Lab, machines []*Machine) {
	doc := readDocument(t, "real-hosts.md", "192.0.2.1", "172.30.1.11", "192.0.2.2", "172.30.1.12")
	first, second := machines[0], machines[1]
	first.In("sh", "-ec", doc.block("overlayctl certs init"))
	for _, file := range []string{"ca.crt", "host-2.crt", "host-2.key"} { // by hand, as scp would
		second.WriteIn("/root/overlayd-certs/"+file, first.In("cat", "/root/overlayd-certs/"+file))
	}
	install := doc.block("install -D -m 0644 ca.crt")
	first.In("sh", "-ec", install)
	second.In("sh", "-ec", strings.ReplaceAll(install, "host-1", "host-2"))
	first.WriteIn("/etc/overlayd/overlayd.yaml", doc.block("etcd-embedded: true"))
	second.WriteIn("/etc/overlayd/overlayd.yaml", doc.block("etcd-endpoints: [https://172.30.1.11:2379]"))
	for _, m := range machines {
		m.In("systemctl", "enable", "--now", "overlayd")
	}
	look := strings.ReplaceAll(doc.block("overlayctl doctor"), "overlayctl leases watch", "timeout 1 overlayctl leases watch || true")
	for _, m := range machines {
		m.reachesPeers()
		m.In("sh", "-ec", look)
	}
	first.In("sh", "-ec", doc.block("certs renew"))
	first.In("sh", "-ec", doc.block("leases reserve"))
	first.In("sh", "-ec", "cd && overlayctl diags")
}

// fromFlannel begins on a machine as flanneld leaves it.
func fromFlannel(t *testing.T, lab *Lab, machines []*Machine) {
	lab.NewEtcd(machines[0].wire)
	lab.StartEtcd()
	lab.Put(configKey, lab.Config(`{"Type":"vxlan"}`))
	doc := readDocument(t, "from-flannel.md", "192.0.2.100", "172.30.1.100")
	us, old := machines[0], machines[1]
	us.WriteIn("/etc/overlayd/overlayd.yaml", "etcd-endpoints: [http://172.30.1.100:2379]\nip-masq: true\n")
	us.In("systemctl", "enable", "--now", "overlayd")
	old.Sysctl("net.ipv4.ip_forward=1")
	env := "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.221.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	old.WriteIn("/run/flannel/subnet.env", env)
	writeFile(old.Host, old.SubnetFile(), env) // where key looks
	old.flannelMakeLinks()
	old.flannelClaim("vxlan")
	old.flannelReach("vxlan", us.Host)

	old.In("sh", "-ec", doc.block("overlayctl leases list"))
	old.WriteIn("/etc/overlayd/overlayd.yaml", doc.block("subnet-file: /run/flannel/subnet.env"))
	old.In("sh", "-ec", doc.block("RuntimeDirectory=overlayd flannel"))
	if out := old.In("sh", "-ec", doc.block("overlayd --dry-run")); !strings.Contains(out, "flannel.1") || strings.Contains(out, "overlay.1") {
		t.Errorf("the dry run takes flannel's link over for nothing:\n%s", out)
	}
	old.WriteIn("/etc/systemd/system/flanneld.service", "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
	old.In("systemctl", "enable", "--now", "flanneld")
	before := old.Exec("ip", "-o", "link", "show", "flannel.1")
	old.In("sh", "-ec", doc.block("overlayctl peers"))
	old.reachesPeers()
	us.reachesPeers()
	if after := old.Exec("ip", "-o", "link", "show", "flannel.1"); after != before {
		t.Errorf("flannel's link was\n%sand is\n%s", before, after)
	}
	if got := old.In("cat", "/run/flannel/subnet.env"); got != env {
		t.Errorf("subnet.env is\n%s, want flannel's\n%s", got, env)
	}
}
