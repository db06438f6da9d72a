package integration

import (
	"fmt"
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
		if conf := b.podman("exec", "web", "cat", "/etc/resolv.conf"); !strings.Contains(conf, "nameserver "+b.addrInLease(1)+"\n") {
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

// addrInLease is the IPv4 address of the host's lease with the given number.
func (b *Box) addrInLease(number int) string {
	b.t.Helper()
	return strings.Replace(envValue(b.t, b.Host, "FLANNEL_SUBNET"), ".1/24", fmt.Sprintf(".%d", number), 1)
}
