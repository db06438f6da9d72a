package integration

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// firstMinute is how long a network of two may take from the first command until containers talk.
const firstMinute = time.Minute

// runtimeMachine lets containerd run in a machine.
var runtimeMachine = []string{"--capability=all", "--system-call-filter=add_key keyctl bpf", "--tmpfs=/var/lib/containerd"}

// containerdMachineConfig leaves out what a machine lacks, and CRI, which ctr does not need.
const containerdMachineConfig = `version = 2
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri"]
`

// TestFirstMinute makes a network of two machines that have the package and nothing else, by one command on each, and has
// containers of ctr talk. Around it each step is done wrong on purpose.
func TestFirstMinute(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	deb := makePackages(t, media, "1.0.0").deb
	image, err := os.ReadFile(busyboxImage(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(media, "image.tar"), image, 0o600); err != nil {
		t.Fatal(err)
	}
	wire := lab.NewSegment(1)
	var machines []*Machine
	for i := range 2 {
		m := lab.NewMachine(wire, 11+i, media, runtimeMachine...)
		m.In("dpkg", "--install", deb)
		m.WriteIn("/etc/containerd/config.toml", containerdMachineConfig)
		m.In("sh", "-c", `for d in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$d"; done; systemctl start containerd`)
		t.Cleanup(func() { eventually(t, "the containers' cgroups go", func() error { return removeCgroups(m.Name) }) })
		m.In("ctr", "image", "import", "--no-unpack", "/media/image.tar")
		machines = append(machines, m)
	}
	first, second := machines[0], machines[1]
	at := first.Addrs[0].String()
	fails := func(m *Machine, want string, args ...string) {
		t.Helper()
		out, err := m.TryIn(append([]string{"overlayctl"}, args...)...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if last := lines[len(lines)-1]; err == nil || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("overlayctl %s: got %q, want one line with %q", strings.Join(args, " "), last, want)
		}
		t.Log(strings.TrimSpace(out))
	}
	foreign := "ov1." + strings.Repeat("a", 51) + "a.abcdefgh." + strings.Repeat("b", 26)
	fails(first, "--network: what range", "init")
	fails(first, "covers .*this host's address", "init", "--network", "172.30.0.0/16")
	fails(second, "refuses connections", "join", at, "--token", foreign)
	if out := first.In("overlayctl", "init", "--network", overlayV4, "--dry-run"); !strings.Contains(out, "would write") || first.Exists("/var/lib/overlayd/pki") {
		t.Errorf("a dry run:\n%s", out)
	}

	begin := time.Now()
	said := first.In("overlayctl", "init", "--network", overlayV4)
	t.Log(said)
	join := strings.Fields(regexp.MustCompile(`(?m)^ +overlayctl (join .*)$`).FindStringSubmatch(said)[1])
	t.Log(second.In(append([]string{"overlayctl"}, join...)...))
	a, b := first.ctrRun("a"), second.ctrRun("b")
	out, err := first.TryIn("ctr", "task", "exec", "--exec-id", "ping", "a", "ping", "-c", "1", "-w", "10", b.String())
	if took := time.Since(begin); err != nil || took > firstMinute {
		t.Fatalf("container %s does not reach %s, or it took %s: %v\n%s", a, b, took, err, out)
	} else {
		t.Logf("from the first command until containers talk: %s", took.Round(time.Millisecond))
	}

	fails(second, "is of another network than the token", "join", at, "--token", foreign)
}

// ctrRun starts a container with ctr, and returns its address.
func (m *Machine) ctrRun(id string) netip.Addr {
	m.t.Helper()
	m.In("ctr", "run", "--detach", "--cni", "--snapshotter", "native", "--cgroup", "/"+m.Name+"/"+id, imageName, id)
	addrs := globalAddrs(m.t, m.In("ctr", "task", "exec", "--exec-id", "addr", id, "ip", "-o", "address", "show", "dev", "eth0"))
	if len(addrs) != 1 {
		m.t.Fatalf("container %s has addresses %v", id, addrs)
	}
	return addrs[0]
}
