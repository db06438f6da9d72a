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
	const mapping = `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
	if got := m.gc(); len(got) != 0 {
		t.Errorf("freed %v where nothing ever was", got)
	}
	living, dead, busy, open, replaced := m.lab.node("living"), m.lab.node("dead"), m.lab.node("busy"), m.lab.node("open"), m.lab.node("new")
	m.attach(living, "{}")
	deadID := m.attach(dead, mapping)
	m.attach(busy, "{}")
	m.attach(open, "{}")
	replacedID := m.attach(replaced, "{}")

	// No name leads to these two any more, but a process is in the one, and another holds the other open.
	for _, p := range []*Process{
		busy.Spawn("in the namespace", nil, "sleep", "infinity"),
		m.Spawn("with the namespace open", nil, "sh", "-c", `exec 3<"$0" && exec sleep infinity`, open.Path()),
	} {
		eventually(t, "the process is where it should be", func() error {
			name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.cmd.Process.Pid))
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
	if rules := m.Exec("nft", "list", "ruleset"); strings.Contains(rules, "dport 8080") {
		t.Errorf("the port mapping is left:\n%s", rules)
	}
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
	pool := filepath.Join(m.varLib, "cni/networks/overlay")
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
	id := m.attach(n, "{}")
	run(t, "ip", "netns", "delete", n.Name)
	run(t, "ip", "netns", "add", n.Name)
	if err := os.Remove(filepath.Join(m.confs, "10-overlay.conflist")); err != nil {
		t.Fatal(err)
	}
	if got := m.gc(); !slices.Equal(got, []string{id + " eth0"}) || len(m.attached()) != 0 {
		t.Errorf("freed %v, left %v", got, m.attached())
	}
}
