package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/policy"
)

// overlayNetwork is what makes a network of Docker's by the driver.
func (d *Docker) overlayNetwork(args ...string) {
	d.t.Helper()
	d.Docker(append([]string{"network", "create", "--driver", "overlayd", "--ipam-driver", "overlayd"}, args...)...)
}

// refusedDocker wants the client to fail with a text.
func (d *Docker) refusedDocker(want string, args ...string) {
	d.t.Helper()
	if out, err := d.Try(d.docker(args...)...); err == nil || !strings.Contains(out, want) {
		d.t.Errorf("docker %v: %v, %s; want %q", args, err, out, want)
	}
}

// address is the container's on a network of Docker's.
func (d *Docker) address(container, network string) netip.Addr {
	d.t.Helper()
	return netip.MustParseAddr(d.Docker("inspect", "--format", "{{(index .NetworkSettings.Networks \""+network+"\").IPAddress}}", container))
}

// kill ends a program in the box, and what it was started as.
func (d *Docker) kill(program string, p *Process) {
	d.t.Helper()
	d.Run("sh", "-c", `for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = "$0" ] && kill -9 ${p#/proc/}; done; true`, program)
	p.Wait()
}

// TestDockerWithDriver has two hosts' Docker on the overlay by the driver: containers reach each other and are published, whatever is
// restarted or killed; what Docker's own tools do is done.
func TestDockerWithDriver(t *testing.T) {
	t.Parallel()
	needRuntimes(t)
	layer := busyboxLayer(t)
	var all []*Docker
	var drivers []*Process
	for _, b := range newBoxes(t) {
		b.Exec("iptables", "-P", "FORWARD", "DROP")
		d := &Docker{Box: b}
		drivers = append(drivers, d.follow())
		d.Boot("--live-restore")
		d.importImage(layer)
		d.refusedDocker("add --ipam-driver overlayd", "network", "create", "--driver", "overlayd", "web")
		d.overlayNetwork("web")
		d.RunWeb("--network", "web", "--label", "app=web", "--label", "overlayd/namespace=shop")
		all = append(all, d)
	}
	wantDocker(t, all)
	d := all[0]
	run := func(args ...string) string {
		return d.Docker(append([]string{"run", "--rm", "--security-opt", "apparmor=unconfined"}, args...)...)
	}
	d.wantRecorded(policy.Identity{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}})
	run("--network", "web", "busybox:1", "/bin/ping", "-c", "1", "-W", "10", "web") // by Docker's DNS

	// Fixed, internal, both of them taken; a second interface of the same overlay.
	d.overlayNetwork("--subnet", overlayV4, "fixed")
	wanted := d.address("web", "web").As4()
	wanted[3] = 240
	fixed := netip.AddrFrom4(wanted).String()
	d.Docker("run", "--detach", "--name", "fixed", "--security-opt", "apparmor=unconfined", "--network", "fixed", "--ip", fixed, "--mac-address", "02:00:00:00:00:77", "busybox:1", "/bin/sleep", "1000")
	if got := d.address("fixed", "fixed").String(); got != fixed {
		t.Errorf("the address is %s, want %s", got, fixed)
	}
	d.refusedDocker("not available", "run", "--name", "fixed2", "--network", "fixed", "--ip", fixed, "busybox:1", "/bin/true")
	d.refusedDocker("leads to another container already", "run", "--name", "published", "--network", "web", "--publish", "8080:80", "busybox:1", "/bin/true")
	d.refusedDocker("is on the overlay by Docker's network", "network", "connect", "fixed", "web")
	d.Docker("stop", "--time", "0", "web") // while it runs Docker says that it is not on that network, and afterwards will not start it
	d.Docker("network", "disconnect", "--force", "fixed", "web")
	d.Docker("start", "web")
	d.overlayNetwork("--internal", "inside")
	if out := run("--network", "inside", "busybox:1", "/bin/ip", "route"); strings.Contains(out, "default") || !strings.Contains(out, overlayV4) {
		t.Errorf("routes of an internal network: %s", out)
	}
	d.Docker("rm", "--force", "fixed", "fixed2", "published")

	// A container of another network joins, and leaves.
	d.Docker("run", "--detach", "--name", "guest", "--security-opt", "apparmor=unconfined", "busybox:1", "/bin/sleep", "1000")
	d.Docker("network", "connect", "web", "guest")
	d.Docker("exec", "guest", "/bin/ping", "-c", "1", "-W", "10", all[1].address("web", "web").String())
	d.Docker("network", "disconnect", "web", "guest")
	d.Docker("rm", "--force", "guest")

	d.kill("overlayd-docker", drivers[0])
	wantDocker(t, all)
	drivers[0] = d.follow()
	d.kill("dockerd", d.process)
	d.Run("rm", "-f", "/run/docker.pid")
	wantDockerGoesOn(t, all)
	d.Boot("--live-restore")
	wantDocker(t, all)
	d.Docker("restart", "--time", "0", "web")
	wantDocker(t, all)
	d.kill("dockerd", d.process)
	d.Run("rm", "-f", "/run/docker.pid")
	d.Boot("") // ends the containers
	d.Docker("start", "web")
	wantDocker(t, all)

	d.compose()
	for _, d := range all {
		d.Docker("rm", "--force", "web")
		d.Docker("network", "rm", "web")
		d.WaitNothingLeft()
	}
}

// wantRecorded waits until the one endpoint of the driver's is known to be this: it is so before it has an interface, if Docker says
// who it is, and soon after that in any case.
func (d *Docker) wantRecorded(want policy.Identity) {
	d.t.Helper()
	eventually(d.t, "the endpoint is known", func() error {
		all, err := attachment.Read(filepath.Join(d.varLib, "cni", "overlay"), attachment.DockerNetwork)
		if err != nil || len(all.Usable) != 1 || all.Usable[0].Endpoint == nil {
			return fmt.Errorf("%v: %+v", err, all)
		}
		if diff := cmp.Diff(want, *all.Usable[0].Endpoint, cmpopts.EquateEmpty()); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
}

// wantDockerGoesOn has a page served by a container whose dockerd is away.
func wantDockerGoesOn(t *testing.T, hosts []*Docker) {
	t.Helper()
	if _, body, err := hosts[1].Get(fmt.Sprintf("http://%s:8080/", hosts[0].Addrs[0])); err != nil || body != pageText {
		t.Errorf("with dockerd away: %v, %q", err, body)
	}
}

// compose brings a file of two services up and down.
func (d *Docker) compose() {
	d.t.Helper()
	file := `version: "2.4"
services:
  web:
    image: busybox:1
    command: /bin/httpd -f -p 80 -h /www
    security_opt: ["apparmor=unconfined"]
    ports: ["8081:80"]
    networks: [overlay]
  client:
    image: busybox:1
    command: /bin/sleep 1000
    security_opt: ["apparmor=unconfined"]
    networks: [overlay]
networks:
  overlay:
    driver: overlayd
    ipam: {driver: overlayd}
`
	if err := os.WriteFile(filepath.Join(d.varLib, "compose.yml"), []byte(file), 0o600); err != nil {
		d.t.Fatal(err)
	}
	compose := func(args ...string) string {
		d.t.Helper()
		return d.Run(append([]string{"docker-compose", "--host", "unix:///run/docker.sock", "--project-name", "shop", "--file", "/var/lib/compose.yml"}, args...)...)
	}
	compose("up", "--detach")
	compose("exec", "-T", "client", "/bin/ping", "-c", "1", "-W", "10", "web")
	if _, body, err := d.Get(fmt.Sprintf("http://%s:8081/", d.Addrs[0])); err != nil || body != pageText {
		d.t.Errorf("compose's port: %v, %q", err, body)
	}
	compose("restart", "--timeout", "0", "web")
	compose("exec", "-T", "client", "/bin/ping", "-c", "1", "-W", "10", "web")
	compose("down", "--timeout", "0")
}
