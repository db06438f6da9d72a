package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// netnsBox is a host with a lease and no daemon, and a root filesystem of busybox's at /run/srv/web, which stands for /srv/web.
func netnsBox(t *testing.T) *Box {
	t.Helper()
	lab := newLab(t, Stack{V4: true})
	b := lab.NewBox(lab.NewSegment(1), 11)
	b.InstallConflist(shippedConflist(t, "1.0.0"))
	writeFile(b.Host, b.SubnetFile(), wholeEnv)
	b.Run("sh", "-ec", `mkdir -p /run/srv/web && cd /run/srv/web
mkdir bin sbin etc proc sys dev tmp root usr www
cp "$(command -v busybox)" bin/
for name in sh ip httpd hostname; do ln -s busybox bin/$name; done
ln -s ../bin/busybox sbin/init
echo ID=busybox >etc/os-release`)
	return b
}

// say runs lines of a document inside the box.
func (b *Box) say(lines string) (string, error) {
	lines = strings.NewReplacer("/srv/", "/run/srv/", "\n# ", "\n", "systemd-nspawn ", "systemd-nspawn --register=no --keep-unit --quiet ").Replace("\n" + lines)
	return b.Try(b.inside("sh", "-ec", `export PATH="$1:$PATH" OVERLAYD_CONFIG=/dev/null`+lines, "sh", bin(""))...)
}

func (b *Box) mustSay(lines string) string {
	b.t.Helper()
	out, err := b.say(lines)
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", lines, err, out)
	}
	return out
}

const inNetns = "10.5.7.2"

// TestNspawnDocument does what docs/nspawn.md says.
func TestNspawnDocument(t *testing.T) {
	t.Parallel()
	b := netnsBox(t)
	if said := b.mustSay(readDocument(t, "nspawn.md").block("overlayctl netns add web\nsystemd-nspawn")); !strings.Contains(said, inNetns+"/24") {
		t.Errorf("the container has\n%s", said)
	}
	b.WaitNothingLeft()
}

// lxcConfig is what a container's configuration needs in the box, and with a filesystem that has only busybox.
func (b *Box) lxcConfig() string {
	return "lxc.init.cmd = /bin/busybox httpd -f -h /www\nlxc.mount.auto = proc:mixed\nlxc.apparmor.profile = unconfined\nlxc.cgroup.dir = " + b.cgroup + "\n"
}

// TestLXCDocument does what docs/lxc.md says.
func TestLXCDocument(t *testing.T) {
	t.Parallel()
	b := netnsBox(t)
	doc := readDocument(t, "lxc.md")
	b.Run("mkdir", "-p", "/var/lib/lxc/web")
	config := strings.ReplaceAll(doc.block("lxc.namespace.share.net"), "/srv/", "/run/srv/")
	config += b.lxcConfig()
	file := filepath.Join(b.varLib, "lxc/web/config")
	write := func(config string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(config)
	b.Run("sh", "-c", "echo hello >/run/srv/web/www/index.html")
	lines := doc.block("lxc-attach")
	reach := strings.Replace(lines, "lxc-stop -n web", "busybox ping -c 1 -w 5 "+inNetns+"\nlxc-stop -n web -k", 1)
	if said := b.mustSay(reach); !strings.Contains(said, inNetns+"/24") {
		t.Errorf("the container has\n%s", said)
	}
	b.WaitNothingLeft()

	// LXC runs hooks with a PATH of its own, and those of the document where the package has overlayctl.
	write(config + strings.ReplaceAll(doc.block("lxc.hook.pre-start"), "/usr/bin/overlayctl", bin("overlayctl")+" --config /dev/null"))
	said := b.mustSay("lxc-start -n web\nlxc-attach -n web -- ip -o -4 address show dev eth0\nlxc-stop -n web -k\n")
	if !strings.Contains(said, "10.5.7.") {
		t.Errorf("with hooks the container has\n%s", said)
	}
	b.WaitNothingLeft()
}

// TestLXCBridgeDocument does what docs/lxc.md says of a container with a NIC of its own.
func TestLXCBridgeDocument(t *testing.T) {
	t.Parallel()
	b := netnsBox(t)
	doc := readDocument(t, "lxc.md", "10.244.12.", "10.5.7.", "0a:ff:0a:f4:0c:02", "0a:ff:0a:05:07:02")
	b.Run("mkdir", "-p", "/var/lib/lxc/web")
	// LXC looks into sysfs for the bridge, and that of the box is another namespace's.
	b.Run("sh", "-ec", "mkdir /run/cgroup && mount --rbind /sys/fs/cgroup /run/cgroup && mount -t sysfs sysfs /sys && mount --rbind /run/cgroup /sys/fs/cgroup")
	config := "lxc.rootfs.path = dir:/run/srv/web\n" + doc.block("lxc.net.0.link") + b.lxcConfig()
	if err := os.WriteFile(filepath.Join(b.varLib, "lxc/web/config"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	said := b.mustSay("overlayctl netns add web --bridge to-web\nlxc-start -n web\nlxc-attach -n web -- ip -o -4 address show dev eth0\n" +
		"busybox ping -c 1 -w 10 " + inNetns + "\nlxc-stop -n web -k\noverlayctl netns del web\n")
	if !strings.Contains(said, inNetns+"/24") {
		t.Errorf("the container has\n%s", said)
	}
	b.WaitNothingLeft()
}

// TestQEMUDocument does what docs/qemu.md says, but for the guest, for which a process answers.
func TestQEMUDocument(t *testing.T) {
	t.Parallel()
	doc := readDocument(t, "qemu.md", "10.244.12.", "10.5.7.", "0a:ff:0a:f4:0c:02", "0a:ff:0a:05:07:02")
	b := netnsBox(t)
	lines := strings.SplitAfter(doc.block("overlayctl netns add vm"), "\n")
	said := b.mustSay(lines[0])
	if want := strings.Join(lines[1:4], ""); strings.Join(strings.Fields(said), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("netns add says\n%s, want\n%s", said, want)
	}
	if options := strings.Join(lines[4:6], ""); !strings.Contains(options, "ip netns exec vm qemu-system-x86_64") || !strings.Contains(options, "ifname=tap0,") {
		t.Errorf("QEMU is run by\n%s", options)
	}
	mac := parseMAC(t, strings.Fields(lines[3])[1])
	machineAt(t, fmt.Sprintf("/proc/%d/root%s/vm", b.init.Pid(), netnsDir), "tap0", mac, netip.MustParseAddr(inNetns), netip.MustParseAddr("10.5.7.1"))
	b.Run("ping", "-n", "-c1", "-w15", inNetns)
	b.mustSay(lines[6])
	b.WaitNothingLeft()
}
