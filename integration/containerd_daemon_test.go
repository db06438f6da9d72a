package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Containerd is a containerd in a box, with the image loaded.
type Containerd struct {
	*Box
	process *Process
	config  string
	socket  string
}

// containerdConfig says what must not be the host's own, and leaves out what a machine without much of a kernel or
// without all capabilities lacks. The native snapshotter works on any file system.
const containerdConfig = `version = 2
root = %q
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.nri.v1.nri"]
[debug]
  level = "warn"
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = "/run/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
`

// NewContainerd makes a box with a containerd, and puts the image into the CRI's namespace and into ctr's.
func (l *Lab) NewContainerd(s *Segment, number int) *Containerd {
	l.t.Helper()
	if !filepath.IsAbs(runtimeProgram("containerd")) {
		l.t.Fatal("needs a containerd: apt-get install containerd")
	}
	b := l.NewBox(s, number)
	dir := filepath.Dir(b.RunDir)
	c := &Containerd{
		Box:    b,
		config: filepath.Join(dir, "containerd.toml"),
		socket: filepath.Join(dir, "containerd.sock"),
	}
	config := fmt.Sprintf(containerdConfig, filepath.Join(dir, "containerd"), c.socket, imageName)
	if err := os.WriteFile(c.config, []byte(config), 0o600); err != nil {
		l.t.Fatal(err)
	}
	c.Boot()
	image := busyboxImage(l.t)
	for _, namespace := range []string{"default", "k8s.io"} {
		c.Ctr("--namespace", namespace, "image", "import", "--no-unpack", image)
	}
	return c
}

// Boot starts containerd and waits until it serves.
func (c *Containerd) Boot() {
	c.t.Helper()
	c.process = c.Spawn("containerd on "+c.Name, []string{runtimePath()}, c.inside(
		"sh", "-c", `echo $$ >/run/containerd.pid && mkdir -p /run/containerd && ln -sf "$0" /run/containerd/containerd.sock && exec "$@"`, c.socket,
		runtimeProgram("containerd"), "--config", c.config)...)
	eventually(c.t, "containerd serves", func() error {
		if !c.process.Running() {
			c.t.Fatalf("containerd on %s ended:\n%s", c.Name, tail(c.process.Output.String(), 20))
		}
		out, err := c.Try(c.inside(c.ctr("version")...)...)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
}

// Shutdown ends containerd with a signal; its containers go on.
func (c *Containerd) Shutdown(signal string) {
	c.t.Helper()
	c.Run("sh", "-c", `kill -$0 $(cat /run/containerd.pid)`, signal)
	c.process.Wait()
}

// Is tells whether containerd's version begins so.
func (c *Containerd) Is(version string) bool {
	c.t.Helper()
	out := c.Run(runtimeProgram("containerd"), "--version") // containerd <module> <version> <commit>
	fields := strings.Fields(out)
	if len(fields) < 3 {
		c.t.Fatalf("no version: %s", out)
	}
	return strings.HasPrefix(strings.TrimPrefix(fields[2], "v"), version)
}

func (c *Containerd) ctr(args ...string) []string {
	return append([]string{runtimeProgram("ctr"), "--address", c.socket}, args...)
}

// Ctr runs ctr inside the box; a failure ends the test.
func (c *Containerd) Ctr(args ...string) string {
	c.t.Helper()
	return c.Run(c.ctr(args...)...)
}

// CtrRun starts a container with ctr, which runs the CNI plugins itself.
func (c *Containerd) CtrRun(id string) *CtrContainer {
	c.t.Helper()
	c.Ctr("run", "--detach", "--cni", "--snapshotter", "native", "--cgroup", "/"+c.cgroup+"/"+id, "--label", "app="+id, imageName, id)
	container := &CtrContainer{Containerd: c, ID: id}
	shown := container.InContainer("ip", "-o", "address", "show", "dev", "eth0")
	container.Addrs = globalAddrs(c.t, shown)
	if len(container.Addrs) != len(c.Addrs) {
		c.t.Fatalf("container %s has addresses %v, want one of each family, of %q", id, container.Addrs, shown)
	}
	return container
}

// CtrContainer is a container that ctr has started.
type CtrContainer struct {
	*Containerd
	ID    string
	Addrs []netip.Addr // IPv4 before IPv6
}

// InContainer runs a command in the container; a failure ends the test.
func (c *CtrContainer) InContainer(args ...string) string {
	c.t.Helper()
	id := "e" + strconv.FormatInt(labCount.Add(1), 10) // of the process, never used before
	return c.Ctr(append([]string{"task", "exec", "--exec-id", id, c.ID}, args...)...)
}

// Destroy ends the container as people do with ctr.
func (c *CtrContainer) Destroy() {
	c.t.Helper()
	c.Ctr("task", "kill", "--signal", "SIGKILL", c.ID)
	eventually(c.t, c.ID+" ends", func() error {
		out, err := c.Try(c.inside(c.ctr("task", "delete", c.ID)...)...)
		if err != nil && !strings.Contains(out, "not found") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	c.Ctr("container", "delete", c.ID)
}

// newContainerds makes a wire with a containerd on each of two hosts of the overlay.
func newContainerds(t *testing.T) (*Lab, []*Containerd) {
	t.Helper()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	var all []*Containerd
	var hosts []*Host
	for i := range 2 {
		c := lab.NewContainerd(wire, 11+i)
		all, hosts = append(all, c), append(hosts, c.Host)
	}
	startAll(t, hosts, "--ip-masq")
	return lab, all
}
