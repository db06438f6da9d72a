package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// refusal is something that overlayd must refuse at once: with the exit code, one last line on standard error that
// names the thing, and nothing done.
type refusal struct {
	name string
	args []string // "DIR" stands for a directory of the row's own
	env  []string
	prep func(h *Host, dir string) // makes the host as the row needs it
	wrap []string                  // a command to run overlayd under
	code int
	want []string // what the line says
}

// refusals are found before any etcd is asked, so that none is there.
var refusals = []refusal{
	{name: "unknown flag", args: []string{"--subnet-len=24"}, code: 2, want: []string{"--subnet-len"}},
	{name: "argument", args: []string{"start"}, code: 2, want: []string{`"start"`}},
	{name: "flag without value", args: []string{"--lease-ttl"}, code: 2, want: []string{"--lease-ttl"}},
	{name: "bad duration", args: []string{"--lease-ttl=day"}, code: 2, want: []string{"lease-ttl", `"day"`}},
	{name: "short TTL", args: []string{"--lease-ttl=1s"}, code: 1, want: []string{"--lease-ttl", "1s"}},
	{name: "unknown key", args: []string{"--config=DIR/c.yaml"}, prep: configFile("ip-mask: true\n"), code: 1,
		want: []string{"c.yaml", `"ip-mask"`}},
	{name: "bad value in the file", args: []string{"--config=DIR/c.yaml"}, prep: configFile("lease-ttl: soon\n"), code: 1,
		want: []string{"c.yaml", "lease-ttl", `"soon"`}},
	{name: "no such file", args: []string{"--config=DIR/none.yaml"}, code: 1, want: []string{"none.yaml"}},
	{name: "unknown variable", env: []string{"OVERLAYD_IFACES=eth0"}, code: 1, want: []string{"OVERLAYD_IFACES"}},
	{name: "bad variable", env: []string{"OVERLAYD_IP_MASQ=perhaps"}, code: 1,
		want: []string{"OVERLAYD_IP_MASQ", `"perhaps"`}},
	{name: "log format", args: []string{"--log-format=xml"}, code: 1, want: []string{"--log-format", `"xml"`}},
	{name: "public IP of the wrong family", args: []string{"--public-ip=fd00::1"}, code: 1,
		want: []string{"--public-ip", "fd00::1"}},
	{name: "bad regexp", args: []string{"--iface-regex=^eth("}, code: 1, want: []string{"--iface-regex", "^eth("}},
	{name: "dry run of a cleanup", args: []string{"--cleanup", "--dry-run"}, code: 2, want: []string{"--cleanup", "--dry-run"}},
	{name: "empty prefix", args: []string{"--etcd-prefix="}, code: 1, want: []string{"prefix"}},
	{name: "endpoint", args: []string{"--etcd-endpoints=172.30.1.100:notaport"}, code: 1, want: []string{"notaport"}},
	{name: "no such CA file", args: []string{"--etcd-endpoints=https://172.30.1.100:2379", "--etcd-cafile=DIR/ca.pem"},
		code: 1, want: []string{"ca.pem"}},

	network("unknown network key", `{"Network":"10.5.0.0/16","SubnetLn":24}`, "SubnetLn"),
	network("unknown key of the backend", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNX":1}}`, "Backend.VNX"),
	network("unknown backend", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlam"}}`, `"vxlam"`),
	network("malformed JSON", `{"Network":"10.5.0.0/16"`, "network"),
	network("malformed CIDR", `{"Network":"10.5.0.0/36"}`, "10.5.0.0/36"),
	network("malformed short form", `10.5.0.0`, "10.5.0.0"),
	network("no family", `{"EnableIPv4":false}`, "EnableIPv4"),
	network("no IPv6Network", `{"Network":"10.5.0.0/16","EnableIPv6":true}`, "IPv6Network"),
	network("inverted bounds", `{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.3.0"}`,
		"SubnetMin", "10.5.9.0", "10.5.3.0"),
	network("SubnetMin outside", `{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`, "SubnetMin", "10.6.0.0"),
	network("SubnetMax off its boundary", `{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.7"}`, "SubnetMax", "10.5.9.7"),
	network("SubnetLen too long", `{"Network":"10.5.0.0/16","SubnetLen":31}`, "SubnetLen", "31"),
	network("SubnetLen too short", `{"Network":"10.5.0.0/16","SubnetLen":17}`, "SubnetLen", "17"),
	network("IPv6SubnetLen too long", `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}`,
		"IPv6SubnetLen", "127"),
	network("VNI too large", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}`, "VNI", "16777216"),
	network("MTU too small", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":100}}`, "MTU", "100"),
	network("backend option of the wrong type", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":"x"}}`, "Port"),

	{name: "run dir is a file", args: []string{"--run-dir=DIR/file/run"}, prep: file("file"), code: 1, want: []string{"DIR/file"}},
	{name: "state dir is a file", args: []string{"--state-dir=DIR/file/state"}, prep: file("file"), code: 1,
		want: []string{"DIR/file"}},
	{name: "run dir read-only", args: []string{"--run-dir=/proc/sys/overlayd"}, code: 1, want: []string{"/proc/sys/overlayd"}},
	{name: "state dir read-only", args: []string{"--state-dir=/proc/sys/overlayd"}, code: 1,
		want: []string{"/proc/sys/overlayd"}},
	{name: "subnet file read-only", args: []string{"--subnet-file=/proc/sys/overlayd/subnet.env"}, code: 1,
		want: []string{"subnet file", "/proc/sys/overlayd"}},
	{name: "run dir of another user", args: []string{"--run-dir=DIR", "--state-dir=DIR/state"}, prep: foreign, wrap: nobody,
		code: 1, want: []string{"run directory", "DIR", "permission denied"}},
	{name: "state dir of another user", args: []string{"--run-dir=DIR/own", "--state-dir=DIR/state"}, prep: foreign, wrap: nobody,
		code: 1, want: []string{"state directory", "DIR/state", "permission denied"}},
	{name: "no CAP_NET_ADMIN", wrap: []string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"},
		code: 1, want: []string{"CAP_NET_ADMIN"}},
	{name: "HTTP address", args: []string{"--http=9417"}, code: 1, want: []string{"--http 9417"}},
	{name: "HTTP port taken", args: []string{"--http=127.0.0.1:7777"}, prep: listener, code: 1, want: []string{"127.0.0.1:7777"}},
}

// network is the row of a network config that makes no sense.
func network(name, config string, want ...string) refusal {
	return refusal{name: name, args: []string{"--network=" + config}, code: 1, want: append(want, "--network")}
}

func configFile(text string) func(*Host, string) {
	return func(h *Host, dir string) { writeFile(h, filepath.Join(dir, "c.yaml"), text) }
}

func file(name string) func(*Host, string) {
	return func(h *Host, dir string) { writeFile(h, filepath.Join(dir, name), "") }
}

func writeFile(h *Host, path, text string) {
	h.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// nobody is a user with the capabilities of the unit.
var nobody = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
	"--inh-caps=+net_admin,+net_raw", "--ambient-caps=+net_admin,+net_raw"}

// foreign lets nobody into dir, but only write below own.
func foreign(h *Host, dir string) {
	h.Exec("install", "-d", "-o", "65534", dir+"/own")
	h.Exec("chmod", "a+rx", dir, filepath.Dir(dir))
}

func listener(h *Host, _ string) {
	p := h.Spawn("listener", nil, "socat", "TCP-LISTEN:7777,bind=127.0.0.1,fork", "/dev/null")
	eventually(h.t, "the port is taken", func() error {
		if !p.Running() {
			h.t.Fatal("socat ended")
		}
		_, err := h.Try("sh", "-c", "ss -Hltn sport = :7777 | grep -q .")
		return err
	})
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Stack{V4: true, V6: true})
			h := lab.NewHost(lab.NewSegment(1), 11)
			r.check(t, h, t.TempDir())
			leavesNothing(t, h.State)
		})
	}
}

// check runs overlayd as the row says and looks at what it says and leaves.
func (r refusal) check(t *testing.T, h *Host, dir string) {
	t.Helper()
	if r.prep != nil {
		r.prep(h, dir)
	}
	before := h.Dump()
	args := h.Args(r.args...)
	args = slices.Insert(args, slices.Index(args, bin("overlayd")), r.wrap...)
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "DIR", dir)
	}
	p := h.Spawn("overlayd", r.env, args...)
	code, stderr := p.Wait(), p.Output.String()
	if code != r.code {
		t.Errorf("exit code %d, want %d", code, r.code)
	}
	line := tail(stderr, 1)
	if before := strings.TrimSuffix(strings.TrimSpace(stderr), line); !strings.HasPrefix(line, "overlayd: ") ||
		strings.Count(before, "\n") != strings.Count(before, " level=INFO ") {
		t.Errorf("standard error is not the log's steps and then one line of what is wrong:\n%s", stderr)
	}
	for _, want := range r.want {
		if want = strings.ReplaceAll(want, "DIR", dir); !strings.Contains(line, want) {
			t.Errorf("standard error does not name %s:\n%s", want, stderr)
		}
	}
	sameDump(t, h.Node, before)
	leavesNothing(t, h.RunDir)
}

func leavesNothing(t *testing.T, dir string) {
	t.Helper()
	if files := filesUnder(t, dir); len(files) != 0 {
		t.Errorf("files %q left in %s", files, dir)
	}
}
