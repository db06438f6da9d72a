package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// gc runs overlayctl cni gc and returns what it says was freed.
func (m *mounted) gc(args ...string) []string {
	m.t.Helper()
	out := m.Must(m.overlayctl(append([]string{"cni", "gc", "-o", "json"}, args...)...)...)
	var list []struct{ ContainerID, IfName, Address string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		m.t.Fatalf("%v in\n%s", err, out)
	}
	var found []string
	for _, f := range list {
		found = append(found, strings.TrimSpace(strings.Join([]string{f.ContainerID, f.IfName, f.Address}, " ")))
	}
	slices.Sort(found)
	return found
}

// attach attaches a namespace as a runtime with a cache of its results does, and returns its container's id.
func (m *mounted) attach(n *Node, capabilities string) (id string) {
	m.t.Helper()
	before := m.attached()
	cmd := m.Command(bin("cnitool"), "add", "overlay", n.Path())
	cmd.Env = append(cmd.Env, "CNI_PATH="+bin(""), "NETCONFPATH="+m.confs, "CAP_ARGS="+capabilities)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("add %s: %v\n%s", n.Name, err, out)
	}
	for _, now := range m.attached() {
		if !slices.Contains(before, now) {
			id, _, _ = strings.Cut(now, ":")
		}
	}
	return id
}

// attached lists the attachments' files.
func (m *mounted) attached() []string {
	m.t.Helper()
	names := []string{}
	entries, err := os.ReadDir(filepath.Join(m.varLib, "cni/overlay/overlay"))
	if err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestCNIGC frees what nobody has any more, and nothing else.
func TestCNIGC(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	if got := m.gc(); len(got) != 0 {
		t.Errorf("freed %v where nothing ever was", got)
	}
	living, dead, busy, open, replaced := m.lab.node("living"), m.lab.node("dead"), m.lab.node("busy"), m.lab.node("open"), m.lab.node("new")
	m.attach(living, "{}")
	deadID := m.attach(dead, portMapping)
	m.attach(busy, "{}")
	m.attach(open, "{}")
	replacedID := m.attach(replaced, "{}")

	// No name leads to these two any more, but a process is in the one, and another holds the other open.
	for _, p := range []*Process{
		busy.Spawn("in the namespace", nil, "sleep", "infinity"),
		m.Spawn("with the namespace open", nil, "sh", "-c", `exec 3<"$0" && exec sleep infinity`, open.Path()),
	} {
		eventually(t, "the process is where it should be", func() error {
			name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.Pid()))
			if err == nil && string(name) != "sleep\n" {
				err = fmt.Errorf("it is still %s", name)
			}
			return err
		})
	}
	for _, n := range []*Node{dead, busy, open, replaced} {
		run(t, "ip", "netns", "delete", n.Name)
		run(t, "ip", "netns", "add", n.Name) // another one, which the test removes
	}

	want := []string{deadID + " eth0", replacedID + " eth0"}
	slices.Sort(want)
	before := m.attached()
	if got := m.gc("--dry-run"); !slices.Equal(got, want) || !slices.Equal(m.attached(), before) {
		t.Errorf("a dry run says %v, want %v, and leaves %v", got, want, m.attached())
	}
	if !strings.Contains(m.Exec("nft", "list", "ruleset"), "dport 8080") {
		t.Fatal("there is no port mapping to be freed")
	}
	if got := m.gc(); !slices.Equal(got, want) || len(m.attached()) != 3 {
		t.Errorf("freed %v, want %v, and left %v", got, want, m.attached())
	}
	m.wantUnmapped()
	if got := m.gc(); len(got) != 0 {
		t.Errorf("freed %v the second time", got)
	}
	living.Exec("ping", "-n", "-c1", "-W2", "10.5.7.1")
}

// TestCNIGCReservations frees addresses that are nobody's: not one that another plugin's container has, nor one that may
// be about to be given.
func TestCNIGCReservations(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	m.attach(m.lab.node("ours"), "{}") // 10.5.7.2
	flannels := m.lab.node("flannels")
	flannels.Exec("ip", "address", "add", "10.5.7.77/24", "dev", "lo")
	pool := filepath.Join(m.varLib, "cni/networks/overlayd-10.5.7.0-24")
	for address, age := range map[string]time.Duration{"10.5.7.77": time.Hour, "10.5.7.88": time.Hour, "10.5.7.99": time.Minute} {
		writeFile(m.Host, filepath.Join(pool, address), fmt.Sprintf("c%s\r\neth0", address))
		setAge(t, filepath.Join(pool, address), age)
	}
	setAge(t, filepath.Join(pool, "10.5.7.2"), time.Hour)
	want := []string{"c10.5.7.88 eth0 10.5.7.88"}
	if got := m.gc("--dry-run"); !slices.Equal(got, want) {
		t.Errorf("a dry run says %v", got)
	}
	if got := m.gc(); !slices.Equal(got, want) {
		t.Errorf("freed %v", got)
	}
	var left []string
	for _, path := range filesUnder(t, pool) {
		left = append(left, filepath.Base(path))
	}
	slices.Sort(left)
	if got := strings.Join(left, " "); got != "10.5.7.2 10.5.7.77 10.5.7.99 last_reserved_ip.0 lock" {
		t.Errorf("left: %s", got)
	}
}

func setAge(t *testing.T, path string, age time.Duration) {
	t.Helper()
	made := time.Now().Add(-age)
	if err := os.Chtimes(path, made, made); err != nil {
		t.Fatal(err)
	}
}

// TestCNIGCWithoutConfiguration frees what a network has left whose configuration is gone.
func TestCNIGCWithoutConfiguration(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	n := m.lab.node("dead")
	id := m.attach(n, portMapping)
	run(t, "ip", "netns", "delete", n.Name)
	run(t, "ip", "netns", "add", n.Name)
	if err := os.Remove(filepath.Join(m.confs, "10-overlay.conflist")); err != nil {
		t.Fatal(err)
	}
	if got := m.gc(); !slices.Equal(got, []string{id + " eth0"}) || len(m.attached()) != 0 {
		t.Errorf("freed %v, left %v", got, m.attached())
	}
	m.wantUnmapped()
}

// portMapping is a capability, of which the plugin beside overlay makes rules.
const portMapping = `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`

func (m *mounted) wantUnmapped() {
	m.t.Helper()
	if rules := m.Exec("nft", "list", "ruleset"); strings.Contains(rules, "dport 8080") {
		m.t.Errorf("the port mapping is left:\n%s", rules)
	}
}

// attachAs attaches a namespace with the address.
func (m *mounted) attachAs(n *Node, address string) error {
	cmd := m.Command(bin("cnitool"), "add", "overlay", n.Path())
	cmd.Env = append(cmd.Env, "CNI_PATH="+bin(""), "NETCONFPATH="+m.confs, "CNI_ARGS=IgnoreUnknown=1;IP="+address)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("add %s: %w\n%s", n.Name, err, out)
	}
	return nil
}

// TestDeadHolder gives a fixed address again whose container is gone, with its port mapping, and not one whose container
// lives.
func TestDeadHolder(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	dead := m.lab.node("dead")
	m.attach(dead, portMapping) // 10.5.7.2
	heir := m.lab.node("heir")
	if err := m.attachAs(heir, "10.5.7.2"); err == nil || !strings.Contains(err.Error(), "not available") {
		t.Fatalf("the address of a living container: %v", err)
	}
	run(t, "ip", "netns", "delete", dead.Name)
	run(t, "ip", "netns", "add", dead.Name)
	if err := m.attachAs(heir, "10.5.7.2"); err != nil {
		t.Fatal(err)
	}
	m.wantUnmapped()
	heir.Exec("ping", "-n", "-c1", "-W2", "10.5.7.1")
}

// TestReboot fills a host's pool and restarts the host, which gives addresses again at once: to a container of the same
// id too.
func TestReboot(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	writeFile(m.Host, m.SubnetFile(), "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/29\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
	var nodes []*Node
	for i := range 5 {
		nodes = append(nodes, m.lab.node(fmt.Sprint("c", i)))
		m.attach(nodes[i], portMapping)
		m.Exec("nft", "flush", "ruleset") // so that each can have the port
	}
	next := m.lab.node("next")
	if err := m.attachAs(next, "10.5.7.2"); err == nil {
		t.Fatal("more addresses than there are")
	}
	boot := filepath.Join(m.RunDir, "boot_id")
	writeFile(m.Host, boot, "6f3a1c1e-0000-4000-8000-000000000000\n")
	m.Must("mount", "--make-private", "/proc")
	m.Must("mount", "--bind", boot, "/proc/sys/kernel/random/boot_id")
	for _, n := range nodes {
		run(t, "ip", "netns", "delete", n.Name)
		run(t, "ip", "netns", "add", n.Name)
	}
	m.attach(next, "{}")
	for _, n := range nodes[1:] {
		m.attach(n, "{}")
	}
	nodes[4].Exec("ping", "-n", "-c1", "-W2", "10.5.7.1")
	if got := m.gc(); len(got) != 0 {
		t.Errorf("freed %v of living containers", got)
	}
}
