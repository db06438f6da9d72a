package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

const cgroupRoot = "/sys/fs/cgroup"

// Box is a host with processes, mounts and cgroups of its own, for container runtimes: what they write to /run, /etc
// and /var/lib is the box's alone, so that they run with the paths that they have on a real host. When its first
// process ends the kernel ends all others and drops the mounts.
type Box struct {
	*Host
	init   *Process
	cgroup string // the parent of its containers' cgroups, below every hierarchy
}

// boxScript is the first process of a box. $1 is the host's /var/lib, $2 its directory of subnet.env, $3 the plugins'
// directory. The plugin is run through a script that keeps a journal of the calls. The shell stays, to wait for
// orphans, and survives a Crash.
const boxScript = `set -e
mount --bind "$1" /var/lib
mount -t tmpfs tmpfs /run
mkdir -p /run/etc/up /run/etc/work /run/overlayd
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/up,workdir=/run/etc/work /etc
mkdir -p /etc/cni/net.d
mount --bind "$2" /run/overlayd
mount -t tmpfs tmpfs /opt
mkdir -p /opt/cni/bin
ln -s "$3"/* /opt/cni/bin
mv /opt/cni/bin/overlay /opt/cni/overlay
cat >/opt/cni/bin/overlay <<'END'
#!/bin/sh
echo "$CNI_COMMAND id=$CNI_CONTAINERID netns=$CNI_NETNS args=$CNI_ARGS" >>/var/lib/cni/calls
exec /opt/cni/overlay "$@"
END
chmod +x /opt/cni/bin/overlay
touch "$1/booted"
while :; do sleep 3600 & wait; done`

// NewBox puts a box on the segment.
func (l *Lab) NewBox(s *Segment, number int) *Box {
	l.t.Helper()
	sweepDeadCgroups()
	h := l.NewHost(s, number)
	b := &Box{Host: h, cgroup: h.Name}
	b.init = h.Spawn("first process of "+h.Name, nil,
		"unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", boxScript, "sh", h.varLib, h.RunDir, bin(""))
	l.t.Cleanup(b.destroy)
	eventually(l.t, h.Name+" boots", func() error {
		if !b.init.Running() {
			l.t.Fatalf("%s does not boot:\n%s", h.Name, b.init.Output)
		}
		_, err := os.Stat(filepath.Join(h.varLib, "booted"))
		return err
	})
	return b
}

// newBoxes makes two boxes on a wire, with overlayd on each.
func newBoxes(t *testing.T) []*Box {
	t.Helper()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	var boxes []*Box
	var hosts []*Host
	for i := range 2 {
		b := lab.NewBox(wire, 11+i)
		boxes, hosts = append(boxes, b), append(hosts, b.Host)
	}
	startAll(t, hosts, "--ip-masq")
	return boxes
}

// destroy ends every process of the box, and waits for that.
func (b *Box) destroy() {
	unshare := b.init.Pid()
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", unshare)) // has ended: none
	for child := range strings.FieldsSeq(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	<-b.init.Done()
	eventually(b.t, "the cgroups of "+b.Name+" go", func() error { return removeCgroups(b.cgroup) })
}

// inside is a command line that runs args inside the box, from the host's network namespace.
func (b *Box) inside(args ...string) []string {
	proc := fmt.Sprintf("/proc/%d/ns/", b.init.Pid())
	return append([]string{"nsenter", "--mount=" + proc + "mnt", "--pid=" + proc + "pid_for_children", "--"}, args...)
}

// Run runs a command inside the box; a failure ends the test.
func (b *Box) Run(args ...string) string {
	b.t.Helper()
	return b.Exec(b.inside(args...)...)
}

// Crash kills every process of the box but the first, as a loss of power does, and takes away what is not on disk.
func (b *Box) Crash() {
	b.t.Helper()
	b.Run("sh", "-c", "kill -KILL -1")
	b.Exec("ip", "link", "delete", "cni0")
}

// libcni is what runtimes call plugins with, with the cache of those inside the box.
func (b *Box) libcni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(nil, filepath.Join(b.varLib, "cni"), boxExec{b})
}

// InstallConflist gives the runtimes a CNI configuration as an operator should: whole, by a rename in its directory.
func (b *Box) InstallConflist(conflist []byte) {
	b.t.Helper()
	staged := filepath.Join(b.varLib, "staged")
	if err := os.WriteFile(staged, conflist, 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.Run("sh", "-c", `cd /etc/cni/net.d && cp /var/lib/staged .10-overlay && mv .10-overlay 10-overlay.conflist`)
}

// Calls are the plugin's calls so far, STATUS aside, which containerd 2 makes when it likes.
func (b *Box) Calls() []string {
	b.t.Helper()
	journal, err := os.ReadFile(filepath.Join(b.varLib, "cni", "calls"))
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	var calls []string
	for line := range strings.Lines(string(journal)) {
		if !strings.HasPrefix(line, "STATUS") && !strings.HasPrefix(line, "VERSION") {
			calls = append(calls, strings.TrimSpace(line))
		}
	}
	return calls
}

// Left is what attachments have left on the host: files of state and of addresses, and links.
func (b *Box) Left() []string {
	b.t.Helper()
	var left []string
	for _, dir := range []string{"overlay", "networks", "results"} {
		path := filepath.Join(b.varLib, "cni", dir)
		if _, err := os.Stat(path); err == nil {
			left = append(left, leases(filesUnder(b.t, path))...)
		}
	}
	for line := range strings.Lines(b.Exec("ip", "-o", "link", "show", "type", "veth")) {
		if !strings.Contains(line, " eth0@") && !strings.HasPrefix(line, "Error: ") { // of namespaces that others have just removed
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left
}

// WaitNothingLeft waits until every attachment is gone; the kernel takes a namespace's links down in the background.
func (b *Box) WaitNothingLeft() {
	b.t.Helper()
	eventually(b.t, b.Name+" is clean", func() error {
		if left := b.Left(); len(left) > 0 {
			return fmt.Errorf("left: %q", left)
		}
		return nil
	})
}

// removeCgroups removes a cgroup and those in it from every hierarchy. Those that are not there are no error.
func removeCgroups(name string) error {
	hierarchies, err := filepath.Glob(filepath.Join(cgroupRoot, "*", name))
	if err != nil {
		return err
	}
	for _, top := range append(hierarchies, filepath.Join(cgroupRoot, name)) {
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append([]string{path}, dirs...) // the deepest first
			}
			return nil // goes while we look
		})
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

// sweepDeadCgroups removes the cgroups of runs that were killed before they could tidy up.
func sweepDeadCgroups() {
	found, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", namePrefix+"*"))
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), namePrefix), "-")
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			_ = removeCgroups(filepath.Base(dir))
		}
	}
}
