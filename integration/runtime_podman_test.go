package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/policy"
)

// podmanScript makes podman 4 use CNI, and need nothing that is not there; $1 is where conmon is.
const podmanScript = `mkdir -p /etc/containers
cat >/etc/containers/containers.conf <<END
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["$1"]
[containers]
apparmor_profile = "unconfined"
log_driver = "k8s-file"
oom_score_adj = 0
END
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers"\ngraphroot = "/var/lib/containers"\n' >/etc/containers/storage.conf`

// podman runs podman inside the box; a failure ends the test.
func (b *Box) podman(args ...string) string {
	b.t.Helper()
	libraries, err := filepath.Glob(unpacked("usr/lib/*-linux-gnu"))
	if err != nil {
		b.t.Fatal(err)
	}
	env := []string{"env", unpackedPath(), "LD_LIBRARY_PATH=" + strings.Join(libraries, ":"), "CNI_ARGS=NAMESPACE=shop;LABELS=app:web", unpacked("usr/bin/podman")}
	return strings.TrimSpace(b.Run(append(env, args...)...))
}

// TestPodman has podman 4 run containers on two hosts.
func TestPodman(t *testing.T) {
	t.Parallel()
	needRuntimes(t)
	image := busyboxImage(t)
	boxes := newBoxes(t)
	for _, b := range boxes {
		b.InstallConflist(shippedConflist(t, "1.0.0"))
		b.Run("sh", "-c", podmanScript, "sh", unpacked("usr/bin/conmon"))
		b.podman("load", "--input", image)
		b.podman("run", "--detach", "--name", "web", "--cgroup-parent", "/"+b.cgroup, "--network", "overlay",
			"--ip", b.addrInLease(99), "--mac-address", "02:00:00:00:00:99", "--publish", "8080:80",
			imageName, "httpd", "-f", "-p", "80", "-h", "/www")
	}
	for i, b := range boxes {
		if conf := b.podman("exec", "web", "busybox", "cat", "/etc/resolv.conf"); !strings.Contains(conf, "nameserver "+b.addrInLease(1)+"\n") {
			t.Errorf("podman made of the result's nameserver\n%s", conf)
		}
		wantEndpoint(t, b, b.podman("inspect", "--format", "{{.Id}}", "web"), policy.Identity{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}})
		other := boxes[1-i]
		b.podman("exec", "web", "ping", "-c", "1", "-W", "10", other.addrInLease(99))
		if link := b.podman("exec", "web", "ip", "link", "show", "eth0"); !strings.Contains(link, "02:00:00:00:00:99") {
			t.Errorf("the MAC is not the wanted one: %s", link)
		}
		url := fmt.Sprintf("http://%s:8080/", other.Addrs[0])
		if _, body, err := b.Get(url); err != nil || body != pageText {
			t.Errorf("%s from the other host: %v, %q", url, err, body)
		}
	}
	for _, b := range boxes {
		b.podman("restart", "--time", "0", "web")
	}
	boxes[0].podman("exec", "web", "ping", "-c", "1", "-W", "10", boxes[1].addrInLease(99))
	for _, b := range boxes {
		b.podman("rm", "--force", "--time", "0", "web")
		b.WaitNothingLeft()
	}
}

// podman5Script makes podman 5 find what it needs, and our plugin; $1 is where its files are.
const podman5Script = `mkdir -p /etc/containers /run/netavark
ln -s /opt/cni/bin/overlay /run/netavark/overlay
cat >/etc/containers/containers.conf <<END
[network]
network_backend = "netavark"
netavark_plugin_dirs = ["/run/netavark"]
firewall_driver = "nftables"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
conmon_path = ["$1/usr/bin/conmon"]
helper_binaries_dir = ["$1/usr/lib/podman"]
[containers]
apparmor_profile = "unconfined"
log_driver = "k8s-file"
oom_score_adj = 0
END
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers"\ngraphroot = "/var/lib/containers"\n' >/etc/containers/storage.conf`

// podman5 runs podman 5 inside the box.
func (b *Box) podman5(args ...string) (string, error) {
	b.t.Helper()
	env := []string{"env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", filepath.Join(podman5Root(), "usr/bin/podman")}
	out, err := b.Command(b.inside(append(env, args...)...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (b *Box) mustPodman5(args ...string) string {
	b.t.Helper()
	out, err := b.podman5(args...)
	if err != nil {
		b.t.Fatalf("podman %v: %v\n%s", args, err, out)
	}
	return out
}

func podman5Root() string { return filepath.Join(os.Getenv(runtimesDirEnv), "podman5", "root") }

// TestPodman5 has podman 5, which has netavark and no CNI, run containers on two hosts.
func TestPodman5(t *testing.T) {
	t.Parallel()
	needRuntimes(t)
	image := busyboxImage(t)
	boxes := newBoxes(t)
	run := func(b *Box, name string, more ...string) []string {
		return append(append([]string{"run", "--detach", "--name", name, "--cap-add", "NET_RAW", "--cgroup-parent", "/" + b.cgroup}, more...),
			imageName, "httpd", "-f", "-p", "80", "-h", "/www")
	}
	for _, b := range boxes {
		b.Run("sh", "-c", podman5Script, "sh", podman5Root())
		b.mustPodman5("load", "--input", image)
		b.mustPodman5("network", "create", "--driver", "overlay", "--opt", "namespace=shop", "overlay")
		b.mustPodman5(run(b, "web", "--network", "overlay", "--ip", b.addrInLease(99), "--mac-address", "02:00:00:00:00:99", "--publish", "8080:80")...)
	}
	for i, b := range boxes {
		wantEndpoint(t, b, b.mustPodman5("inspect", "--format", "{{.Id}}", "web"), policy.Identity{Namespace: "shop", Name: "web"})
		other := boxes[1-i]
		b.mustPodman5("exec", "web", "ping", "-c", "1", "-W", "10", other.addrInLease(99))
		if link := b.mustPodman5("exec", "web", "ip", "link", "show", "eth0"); !strings.Contains(link, "02:00:00:00:00:99") {
			t.Errorf("the MAC is not the wanted one: %s", link)
		}
		if shown := b.mustPodman5("inspect", "--format", "{{.NetworkSettings.Networks.overlay.IPAddress}}", "web"); shown != b.addrInLease(99) {
			t.Errorf("podman shows the address %s", shown)
		}
		if conf := b.mustPodman5("exec", "web", "busybox", "cat", "/etc/resolv.conf"); !strings.Contains(conf, "nameserver "+b.addrInLease(1)) {
			t.Errorf("the container asks for names by\n%s", conf)
		}
		if _, body, err := b.Get(fmt.Sprintf("http://%s:8080/", other.Addrs[0])); err != nil || body != pageText {
			t.Errorf("the port of the other host: %v, %q", err, body)
		}
	}
	first := boxes[0]
	if out, err := first.podman5(run(first, "other", "--network", "overlay", "--ip", first.addrInLease(99))...); err == nil || !strings.Contains(out, "is not available") {
		t.Errorf("an address is given twice: %v, %s", err, out)
	}
	first.mustPodman5("rm", "--force", "other")
	if out, err := first.podman5("network", "create", "--driver", "overlay", "--subnet", "10.9.0.0/24", "bad"); err == nil || !strings.Contains(out, "those of the host's lease") {
		t.Errorf("a network is made with addresses of its own: %v, %s", err, out)
	}
	first.mustPodman5("network", "create", "--driver", "overlay", "--internal", "inner") // of the same lease
	first.mustPodman5("network", "connect", "inner", "web")
	if routes := first.mustPodman5("exec", "web", "ip", "route"); strings.Count(routes, "default") != 1 {
		t.Errorf("of two networks the container has the routes\n%s", routes)
	}
	first.mustPodman5("network", "disconnect", "inner", "web")
	for _, b := range boxes {
		b.mustPodman5("restart", "--time", "0", "web")
	}
	first.mustPodman5("exec", "web", "ping", "-c", "1", "-W", "10", boxes[1].addrInLease(99))
	first.Run("sh", "-c", "kill -KILL "+first.mustPodman5("inspect", "--format", "{{.State.Pid}}", "web"))
	for _, b := range boxes {
		b.mustPodman5("rm", "--force", "--time", "0", "web")
		b.WaitNothingLeft()
	}
}

// addrInLease is the IPv4 address of the host's lease with the given number.
func (b *Box) addrInLease(number int) string {
	b.t.Helper()
	return strings.Replace(envValue(b.t, b.Host, "FLANNEL_SUBNET"), ".1/24", fmt.Sprintf(".%d", number), 1)
}
