package integration

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
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

// newJoiners are two machines that have the package and nothing else.
func newJoiners(t *testing.T, nspawn ...string) (first, second *Machine) {
	t.Helper()
	lab := newLab(t, Stack{V4: true})
	media := t.TempDir()
	deb := makePackages(t, media, "1.0.0").deb
	wire := lab.NewSegment(1)
	var machines []*Machine
	t.Cleanup(func() { // after the machines
		for _, m := range machines {
			eventually(t, "the containers' cgroups go", func() error { return removeCgroups(m.Name) })
		}
	})
	for i := range 2 {
		m := lab.NewMachine(wire, 11+i, media, nspawn...)
		m.In("dpkg", "--install", deb)
		machines = append(machines, m)
	}
	return machines[0], machines[1]
}

// fails runs overlayctl for a mistake that must be told in one line, the last, but for the one that leads to the help.
func (m *Machine) fails(want string, args ...string) {
	m.t.Helper()
	out, err := m.TryIn(append([]string{"overlayctl"}, args...)...)
	var said []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "overlayctl: ") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	if err == nil || len(said) != 1 || !regexp.MustCompile(want).MatchString(said[0]) {
		m.t.Errorf("overlayctl %s: got %q, want one line with %q", strings.Join(args, " "), out, want)
		return
	}
	m.t.Log(said[0])
}

var joinLine = regexp.MustCompile(`(?m)^ *overlayctl (join .*)$`)

// TestFirstMinute makes a network of two machines that have the package and nothing else, by one command on each, and has
// containers of ctr talk. Around it each step is done wrong on purpose.
func TestFirstMinute(t *testing.T) {
	t.Parallel()
	first, second := newJoiners(t, runtimeMachine...)
	image, err := os.ReadFile(busyboxImage(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{first, second} {
		m.WriteIn("/etc/containerd/config.toml", containerdMachineConfig)
		m.WriteIn("/root/image.tar", string(image))
		m.In("sh", "-c", `for d in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$d"; done; systemctl start containerd`)
		m.In("ctr", "image", "import", "--no-unpack", "/root/image.tar")
	}
	at := first.Addrs[0].String()
	wrongInit(first, second, at)

	begin := time.Now()
	said := first.In("overlayctl", "init", "--network", overlayV4)
	took := time.Since(begin)
	t.Log(said)
	join := strings.Fields(joinLine.FindStringSubmatch(said)[1])
	wrongJoin(first, second, join)

	begin = time.Now()
	t.Log(second.In(append([]string{"overlayctl"}, join...)...))
	a, b := first.ctrRun("a"), second.ctrRun("b")
	out, err := first.TryIn("ctr", "task", "exec", "--exec-id", "ping", "a", "ping", "-c", "1", "-w", "10", b.String())
	took += time.Since(begin)
	if err != nil {
		t.Fatalf("container %s does not reach %s: %v\n%s", a, b, err, out)
	}
	t.Logf("two commands, and two containers that talk: %s", took.Round(time.Millisecond))
	if took > firstMinute {
		t.Errorf("that is more than %s", firstMinute)
	}
	joinedAlready(first, second, join)
	removed(first, second, join, b)
}

// wrongInit is what can be wrong before there is a network.
func wrongInit(first, second *Machine, at string) {
	first.t.Helper()
	const foreign = "ov1.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.abcdefgh.bbbbbbbbbbbbbbbbbbbbbbbbbb"
	first.fails("--network: what range", "init")
	first.fails("covers this host's address", "init", "--network", "172.30.0.0/16")
	first.fails("--iface eth7: no link has this name", "init", "--network", overlayV4, "--iface", "eth7")
	second.fails("refuses connections: does overlayd run there with join-listen", "join", at, "--token", foreign)
	second.fails("172.30.1.99:9418 cannot be reached", "join", "172.30.1.99", "--token", foreign)
	if out, err := first.TryIn("unshare", "-m", "sh", "-c", "mount -t tmpfs none /run && overlayctl init --network "+overlayV4); err == nil ||
		!strings.Contains(out, "systemd does not run here") {
		first.t.Errorf("without systemd: %v, %s", err, out)
	}
	first.WriteIn("/etc/overlayd/overlayd.yaml", "lease-ttl: 12h\n")
	first.fails("has settings that overlayctl did not write", "init", "--network", overlayV4)
	first.WriteIn("/etc/overlayd/overlayd.yaml", "# nothing\n")
	out := first.In("overlayctl", "init", "--network", overlayV4, "--dry-run")
	if !strings.Contains(out, "would write /etc/overlayd/overlayd.yaml") || first.Exists("/var/lib/overlayd/pki") {
		first.t.Errorf("a dry run:\n%s", out)
	}
}

// wrongJoin is what can be wrong before the second host is let in.
func wrongJoin(first, second *Machine, join []string) {
	first.t.Helper()
	at, token := join[1], join[3]
	with := func(token string) []string { return []string{"join", at, "--token", token} }
	second.fails("the token is wrong", with(token[:len(token)-4]+"aaaa")...)
	second.fails("another CA has signed its certificate, or somebody is in between; nothing was sent to it", with("ov1.aaaa"+token[8:])...)
	second.fails("this is no token", with(token[4:])...)
	fresh := joinLine.FindStringSubmatch(first.In("overlayctl", "tokens", "create", "--uses", "1"))[1]
	first.In("overlayctl", "tokens", "revoke", strings.Fields(fresh)[3])
	second.fails("is revoked", strings.Fields(fresh)...)
	for port, want := range map[string]string{
		"9418": "9418 does not answer: does a firewall drop TCP 9418", "2379": "etcd at .*2379 does not answer, though the host lets others join: does a firewall drop TCP 2379",
	} {
		first.In("nft", "add table inet shut; add chain inet shut in { type filter hook input priority 0; }; add rule inet shut in tcp dport "+port+" drop")
		second.fails(want, with(token)...)
		first.In("nft", "delete table inet shut")
	}
	out := second.In(append([]string{"overlayctl", "--timeout=10s"}, append(join, "--dry-run")...)...)
	if !strings.Contains(out, "would ask") || second.Exists("/var/lib/overlayd/pki/host.pem") {
		second.t.Errorf("a dry run:\n%s", out)
	}
}

// joinedAlready does again what was done.
func joinedAlready(first, second *Machine, join []string) {
	first.t.Helper()
	const look = "cat /etc/overlayd/overlayd.yaml; cd /var/lib/overlayd/pki; sha256sum *; stat -c '%n %U %a' * ."
	for _, c := range []struct {
		m    *Machine
		args []string
		want []string
	}{
		{first, []string{"init", "--network", overlayV4}, []string{"there is the CA", "there is a certificate", "there is /etc/overlayd/overlayd.yaml", "there is a token"}},
		{second, join, []string{"there is a certificate", "there is /etc/overlayd/overlayd.yaml", "this host is serving"}},
	} {
		before := c.m.In("sh", "-c", look)
		out := c.m.In(append([]string{"overlayctl"}, c.args...)...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				c.m.t.Errorf("%s again does not say %q:\n%s", c.args[0], want, out)
			}
		}
		if after := c.m.In("sh", "-c", look); after != before {
			c.m.t.Errorf("%s again changed\n%s\nto\n%s", c.args[0], before, after)
		}
		if left := c.m.In("find", "/var/lib/overlayd", "-not", "-user", "overlayd"); left != "" {
			c.m.t.Errorf("not the daemon's user's:\n%s", left)
		}
	}
	const foreign = "ov1.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.abcdefgh.bbbbbbbbbbbbbbbbbbbbbbbbbb"
	second.fails("is of another network than the token: its CA is", "join", join[1], "--token", foreign)
	first.fails("this host runs etcd for a network", join...)
	first.fails("this host's network is 10.5.0.0/16, by .*, and not 10.6.0.0/16", "init", "--network", "10.6.0.0/16")
	second.fails("is of a network already, by", "init", "--network", overlayV4)
	second.fails("may not|without a certificate", "tokens", "list")
}

// removed ends the second host's part, and has it join again. Its containers go on.
func removed(first, second *Machine, join []string, container netip.Addr) {
	first.t.Helper()
	if out := first.In("overlayctl", "hosts", "list"); strings.Count(out, "10.5.") != 2 || !strings.Contains(out, "member") {
		first.t.Errorf("hosts list:\n%s", out)
	}
	out := first.In("overlayctl", "hosts", "remove", second.Name)
	if !strings.Contains(out, "released 10.5.") {
		first.t.Errorf("hosts remove:\n%s", out)
	}
	eventually(first.t, "etcd refuses the host that was removed", func() error {
		out, _ := second.TryIn("overlayctl", "status")
		if !strings.Contains(out, "may do nothing") {
			return errors.New(out)
		}
		return nil
	})
	if out := first.In("overlayctl", "leases", "list"); strings.Count(out, "10.5.") != 1 {
		first.t.Errorf("leases after the removal:\n%s", out)
	}
	first.t.Log(second.In(append([]string{"overlayctl"}, join...)...))
	eventually(first.t, "the containers reach each other again", func() error {
		out, err := first.TryIn("ctr", "task", "exec", "--exec-id", fmt.Sprint("p", time.Now().UnixNano()), "a", "ping", "-c", "1", "-w", "2", container.String())
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// TestKilledInit kills init and join at whatever they are at, again and again, and finds that the last run ends well.
func TestKilledInit(t *testing.T) {
	t.Parallel()
	first, second := newJoiners(t)
	killed := func(m *Machine, args ...string) string {
		t.Helper()
		kills := 0
		for delay := 20 * time.Millisecond; delay < 2*time.Second; delay = delay * 5 / 4 {
			kill := append([]string{"timeout", "--signal=KILL", fmt.Sprint(delay.Seconds()), "overlayctl"}, args...)
			if _, err := m.TryIn(kill...); err != nil {
				kills++
			}
		}
		t.Logf("%s was killed %d times", args[0], kills)
		return m.In(append([]string{"overlayctl"}, args...)...)
	}
	t.Log(killed(first, "init", "--network", overlayV4))
	join := joinLine.FindStringSubmatch(first.In("overlayctl", "tokens", "create", "--uses", "1"))[1]
	t.Log(killed(second, strings.Fields(join)...))
	if out := first.In("overlayctl", "hosts", "list"); strings.Count(out, "10.5.") != 2 {
		t.Errorf("not two hosts with a lease each:\n%s", out)
	}
	for _, m := range []*Machine{first, second} {
		m.WaitPeers(1)
	}
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
