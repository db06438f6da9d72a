package integration

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/cniplugin/identity"
	"github.com/overlayd/overlayd/policy"
)

// Docker is a dockerd in a box. It has the network of the host's lease by one of the two ways it knows.
type Docker struct {
	*Box
	process *Process
}

// docker is a command line of the client.
func (d *Docker) docker(args ...string) []string {
	return d.inside(append([]string{unpacked("usr/bin/docker"), "--host", "unix:///run/docker.sock"}, args...)...)
}

// Docker runs the client; a failure ends the test.
func (d *Docker) Docker(args ...string) string {
	d.t.Helper()
	return strings.TrimSpace(d.Exec(d.docker(args...)...))
}

// Boot starts dockerd, with options that a shell makes of subnet.env.
func (d *Docker) Boot(options string) {
	d.t.Helper()
	d.process = d.Spawn("dockerd on "+d.Name, []string{unpackedPath()}, d.inside("sh", "-c",
		`. /run/overlayd/subnet.env && exec dockerd --host unix:///run/docker.sock --data-root /var/lib/docker \
		--exec-root /run/docker --pidfile /run/docker.pid --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs \
		--cgroup-parent "/$0" `+options, d.cgroup)...)
	eventually(d.t, "dockerd serves", func() error {
		if !d.process.Running() {
			d.t.Fatalf("dockerd on %s ended:\n%s", d.Name, tail(d.process.Output.String(), 20))
		}
		out, err := d.Try(d.docker("info")...)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}

// RunWeb starts a container that serves a page on port 8080 of the host.
func (d *Docker) RunWeb(options ...string) {
	d.t.Helper()
	args := append([]string{"run", "--detach", "--name", "web", "--publish", "8080:80",
		"--security-opt", "apparmor=unconfined"}, options...)
	d.Docker(append(args, "busybox:1", "/bin/httpd", "-f", "-p", "80", "-h", "/www")...)
}

// importImage gives Docker the image busybox:1.
func (d *Docker) importImage(layer []byte) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.varLib, "layer.tar"), layer, 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.Docker("import", filepath.Join(d.varLib, "layer.tar"), "busybox:1")
}

// Reset ends dockerd and what it runs, and has it forget its networks.
func (d *Docker) Reset() {
	d.t.Helper()
	d.Docker("rm", "--force", "web")
	d.Run("sh", "-c", "kill $(cat /run/docker.pid)")
	d.process.Wait()
	d.Run("rm", "-r", "/var/lib/docker/network")
	d.Exec("ip", "link", "delete", "docker0")
}

// TestDocker gives Docker the lease, first for docker0 and then for a network of its own.
func TestDocker(t *testing.T) {
	t.Parallel()
	needRuntimes(t)
	layer := busyboxLayer(t)
	var all []*Docker
	for _, b := range newBoxes(t) {
		// As on hosts that were told to forward nothing.
		b.Exec("iptables", "-P", "FORWARD", "DROP")
		d := &Docker{Box: b}
		d.Boot("--bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU --ip-masq=false")
		d.importImage(layer)
		d.RunWeb()
		all = append(all, d)
	}
	wantDocker(t, all)

	for _, d := range all {
		d.Reset()
		d.Boot("")
		d.Run("sh", "-c", `. /run/overlayd/subnet.env && "$0" --host unix:///run/docker.sock network create \
			--subnet "${FLANNEL_SUBNET%.*}.0/24" --gateway "${FLANNEL_SUBNET%/*}" \
			--opt com.docker.network.driver.mtu="$FLANNEL_MTU" \
			--opt com.docker.network.bridge.enable_ip_masquerade=false overlay`, unpacked("usr/bin/docker"))
		d.follow()
		d.RunWeb("--network", "overlay", "--label", "app=web", "--label", "overlayd/namespace=shop")
	}
	wantDocker(t, all)
	d := all[0]
	address := globalAddrs(t, d.Docker("exec", "web", "/bin/ip", "-o", "address", "show", "dev", "eth0"))
	want := policy.Endpoint{IPs: address, Identity: policy.Identity{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}}}
	d.wantEndpoints(want)
	d.Docker("kill", "web")
	d.wantEndpoints()
	d.Docker("start", "web")
	d.wantEndpoints(want)
}

// follow runs overlayd-docker, as the unit does: it tells overlayd of Docker's containers, and is Docker's driver.
func (d *Docker) follow() *Process {
	d.t.Helper()
	p := d.Spawn("overlayd-docker on "+d.Name, nil, d.inside(bin("overlayd-docker"))...)
	eventually(d.t, "overlayd-docker serves", func() error {
		_, err := d.Try(d.inside("test", "-S", "/run/docker/plugins/overlayd.sock")...)
		return err
	})
	return p
}

// wantEndpoints waits until the daemon's directory has these.
func (d *Docker) wantEndpoints(want ...policy.Endpoint) {
	d.t.Helper()
	eventually(d.t, "Docker's containers are told of", func() error {
		got, unread, err := identity.ReadDir(identity.Dir(d.RunDir))
		if err != nil || len(unread) > 0 {
			return fmt.Errorf("%v, %v", err, unread)
		}
		if diff := cmp.Diff(want, slices.Collect(maps.Values(got)), cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
}

// wantDocker has the containers ping each other, with packets of the overlay's size, and the host's port served.
func wantDocker(t *testing.T, hosts []*Docker) {
	t.Helper()
	for i, d := range hosts {
		other := hosts[1-i]
		addrs := globalAddrs(t, other.Docker("exec", "web", "/bin/ip", "-o", "address", "show", "dev", "eth0"))
		d.Docker("exec", "web", "/bin/ping", "-c", "1", "-W", "10", "-s", "1400", addrs[0].String())
		if link := d.Docker("exec", "web", "/bin/ip", "link", "show", "eth0"); !strings.Contains(link, "mtu 1450") {
			t.Errorf("the container's MTU is not the overlay's: %s", link)
		}
		url := fmt.Sprintf("http://%s:8080/", other.Addrs[0])
		if _, body, err := d.Get(url); err != nil || body != pageText {
			t.Errorf("%s from the other host: %v, %q", url, err, body)
		}
	}
}
