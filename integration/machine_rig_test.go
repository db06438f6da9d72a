package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Machine is a host with an init: a systemd that was booted on a copy of this computer's file system. What is
// written there is kept in memory, outlives a reboot, and goes away with the test.
type Machine struct {
	*Host
	wire   *Segment
	number int
	nspawn []string // what its systemd-nspawn is told besides
	keeper int      // first process of the namespace of all that the machine runs; it holds the mounts
	boot   *Process // systemd-nspawn
	init   int      // systemd in it
}

// keep mounts the machine's file system and waits to be killed, which ends the machine. Services that this computer
// runs are not enabled there, nor what a machine without hardware does not need.
const keep = `
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work none /mnt/root
cd /mnt/root/etc
: >machine-id
rm -rf hostname systemd/system/*.wants rc?.d cni /mnt/root/opt/cni
for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-udev-trigger systemd-logind systemd-timesyncd; do
	ln -sf /dev/null systemd/system/$unit.service
done
echo kept
exec sleep infinity`

// NewMachine makes a machine on the segment under the given number, and boots it with what systemd-nspawn is told besides.
// The directory is seen in it as /media.
func (l *Lab) NewMachine(s *Segment, number int, media string, nspawn ...string) *Machine {
	l.t.Helper()
	for _, command := range []string{"systemd-nspawn", "dpkg", "make"} {
		if _, err := exec.LookPath(command); err != nil {
			l.t.Fatalf("needs %s: run integration/packages.sh", command)
		}
	}
	m := &Machine{Host: l.NewHost(s, number), wire: s, number: number, nspawn: nspawn}
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"--propagation", "slave", "sh", "-ec", keep)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	l.t.Cleanup(m.removeCgroups) // after the processes
	keeper := spawn(l.t, cmd, "file system of "+m.Name, nil)
	eventually(l.t, "the file system is there", func() (err error) {
		if !strings.Contains(keeper.Output.String(), "kept") {
			return fmt.Errorf("%s", keeper.Output)
		}
		m.keeper, err = onlyChild(keeper.Pid())
		return err
	})
	m.Boot(media)
	return m
}

// Boot starts the machine and waits until it is up.
func (m *Machine) Boot(media string) {
	m.t.Helper()
	// Two machines in one control group would make one tree of their services.
	groups := m.cgroups()
	for _, dir := range groups {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	enter := fmt.Sprintf(`for dir in %s; do echo $$ >$dir/cgroup.procs; done; exec "$@"`, strings.Join(groups, " "))
	args := append([]string{"-ec", enter, "sh",
		"nsenter", "--target", strconv.Itoa(m.keeper), "--mount", "--pid", "--",
		"systemd-nspawn", "--directory=/mnt/root", "--boot", "--register=no", "--keep-unit", "--link-journal=no",
		"--network-namespace-path=" + m.Path(), "--capability=CAP_NET_ADMIN", "--console=pipe", "--quiet",
		"--machine=" + m.Name, fmt.Sprintf("--uuid=%032x", os.Getpid()<<8|m.number), "--bind-ro=" + media + ":/media"}, m.nspawn...)
	cmd := exec.Command("sh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	m.boot = spawn(m.t, cmd, "console of "+m.Name, nil)
	eventually(m.t, "the machine is up", func() error {
		nspawn, err := onlyChild(m.boot.Pid())
		if err != nil {
			return err
		}
		if m.init, err = onlyChild(nspawn); err != nil {
			return err
		}
		state, err := m.TryIn("systemctl", "is-system-running")
		if state = strings.TrimSpace(state); state != "running" && state != "degraded" {
			return fmt.Errorf("it is %s: %v", state, err)
		}
		return nil
	})
}

// onlyChild is the child of a process that has one.
func onlyChild(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	children := strings.Fields(string(b))
	if len(children) != 1 {
		return 0, fmt.Errorf("process %d has children %v, not one", pid, children)
	}
	return strconv.Atoi(children[0])
}

// Reboot shuts the machine down and boots it. Nothing is left of what was in its kernel.
func (m *Machine) Reboot(media string) {
	m.t.Helper()
	m.In("systemctl", "poweroff")
	m.boot.Wait()
	run(m.t, "ip", "netns", "delete", m.Name)
	eventually(m.t, "the machine's cable is unplugged", func() error {
		out, err := m.wire.Try("ip", "link", "show", fmt.Sprintf("p%d", m.number))
		if err == nil {
			err = fmt.Errorf("%s", out)
		} else {
			err = nil
		}
		return err
	})
	run(m.t, "ip", "netns", "add", m.Name)
	m.Exec("ip", "link", "set", "lo", "up")
	m.wire.Plug(m.Node, "eth0", m.number)
	m.wire.DefaultRoute(m.Node, "eth0")
	m.Boot(media)
}

// CommandIn is a command to be run inside the machine.
func (m *Machine) CommandIn(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--target", strconv.Itoa(m.init), "--all", "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root", "SYSTEMD_PAGER=", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

// In runs a command inside the machine and returns its output; a failure ends the test.
func (m *Machine) In(args ...string) string {
	m.t.Helper()
	out, err := m.TryIn(args...)
	if err != nil {
		m.t.Fatalf("in the machine: %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryIn is In for commands that may fail.
func (m *Machine) TryIn(args ...string) (string, error) {
	out, err := m.CommandIn(args...).CombinedOutput()
	return string(out), err
}

// WriteIn writes a file of the machine, and the directories above it.
func (m *Machine) WriteIn(path, content string) {
	m.t.Helper()
	cmd := m.CommandIn("install", "-D", "-m", "0644", "/dev/stdin", path)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("write %s in the machine: %v\n%s", path, err, out)
	}
}

// Exists tells whether the machine has a file of that name, of whatever kind.
func (m *Machine) Exists(path string) bool {
	_, err := m.TryIn("stat", path)
	return err == nil
}

// Show is a property of overlayd's unit.
func (m *Machine) Show(property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.In("systemctl", "show", "--value", "--property="+property, "overlayd"))
}

// NewContainer makes a container and attaches it as a runtime of the machine does.
func (m *Machine) NewContainer() *Container {
	m.t.Helper()
	m.seq++
	c := &Container{Node: newNode(m.t, fmt.Sprintf("%s-c%d", m.Name, m.seq)), Host: m.Host}
	ns, err := os.Open(c.Path())
	if err != nil {
		m.t.Fatal(err)
	}
	defer ns.Close()
	const attach = `mkdir -p "${1%/*}"; touch "$1"; mount --no-canonicalize --bind /proc/self/fd/3 "$1"; exec /media/cnitool add overlay "$1"`
	cmd := m.CommandIn("sh", "-ec", attach, "sh", c.Path())
	cmd.Env = append(cmd.Env, "CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d")
	cmd.ExtraFiles = []*os.File{ns}
	out, err := cmd.CombinedOutput()
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err != nil || json.Unmarshal(out, &result) != nil || len(result.IPs) != 1 {
		m.t.Fatalf("attach %s: %v\n%s", c.Name, err, out)
	}
	c.Addrs = []netip.Addr{result.IPs[0].Address.Addr()}
	return c
}

// cgroups are the machine's directories in the control group hierarchies that systemd uses, old or new.
func (m *Machine) cgroups() []string {
	var dirs []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil {
			dirs = append(dirs, filepath.Join(root, m.Name))
		}
	}
	return dirs
}

// removeCgroups removes the machine's control groups, and those of machines whose test was killed.
func (m *Machine) removeCgroups() {
	for _, dir := range m.cgroups() {
		dirs := []string{dir}
		others, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), namePrefix+"*")) // the pattern is good
		for _, other := range others {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(other), namePrefix), "-")
			if _, err := os.Stat(filepath.Join("/proc", pid)); os.IsNotExist(err) {
				dirs = append(dirs, other)
			}
		}
		for _, dir := range dirs {
			eventually(m.t, "control groups are removed", func() error { return removeTree(dir) })
		}
	}
}

// removeTree removes a control group and those in it. Their files are no files: only directories are removed.
func removeTree(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if os.IsNotExist(err) {
		return nil
	}
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
