package integration

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/overlayd/overlayd/"

// arrows are the imports that packages of ours may have of each other, and the libraries that only one may have.
// Data flows one way; an import against it says that something stands in the wrong place.
var arrows = map[string][]string{
	"subnet":                  {},
	"subnet/leasecache":       {"subnet"},
	"subnet/etcdstore":        {"policy", "subnet", "subnet/leasecache"},
	"subnet/etcdembed":        {"policy", "subnet", "subnet/who"},
	"subnet/who":              {},
	"backend/rtnl":            {},
	"backend/underlay":        {"backend/rtnl"},
	"backend/task":            {},
	"backend/ports":           {"backend/rtnl"},
	"backend/firewall":        {"backend/ports", "backend/rtnl", "backend/task"},
	"backend/sysctl":          {"backend/rtnl", "backend/task"},
	"backend/bypass":          {"backend/enforce/pending", "backend/firewall", "backend/ports", "backend/rtnl", "backend/task"},
	"backend/fastpath":        {"backend/kernel", "backend/rtnl", "backend/task"},
	"backend/extension":       {"subnet", "backend/task"},
	"backend/kernel":          {"backend/rtnl", "backend/sysctl", "backend/task"},
	"backend/userspace":       {"backend/kernel"},
	"backend/udptun":          {},
	"policy":                  {}, // pure
	"policy/compile":          {"policy"},
	"policy/manifest":         {"policy"},
	"backend/enforce":         {"policy/compile", "backend/enforce/pending", "backend/rtnl", "backend/task"},
	"backend/enforce/pending": {"backend/rtnl"},
	"cniplugin/identity":      {"policy", "subnet"},
	"cmd/internal/enforcer": {
		"policy", "policy/compile", "subnet", "subnet/etcdstore", "backend/enforce", "backend/ports", "backend/task",
		"cniplugin/attachment", "cniplugin/identity", "cmd/internal/api",
	},
	"cmd/internal/networks":     {"subnet", "subnet/etcdstore", "backend/task", "cmd/internal/agent", "cmd/internal/api"},
	"cmd/internal/names":        {"policy", "subnet", "backend/task", "cmd/internal/api"},
	"backend":                   {"subnet", "backend/extension", "backend/kernel", "backend/underlay"},
	"integration/internal/proc": {},               // for tests only
	"subnet/internal/freeport":  {},               // for tests only
	"backend/internal/nstest":   {"backend/rtnl"}, // for tests only
	"cmd/internal/version":      {},
	"cmd/internal/settings":     {"subnet/etcdstore"},
	"cmd/internal/api":          {"policy"},
	"cmd/internal/man":          {},
	"cmd/internal/program":      {"cmd/internal/man", "cmd/internal/version"},
	"cmd/internal/certs":        {"subnet/who"},
	"cmd/internal/enrol":        {"subnet", "subnet/etcdstore", "subnet/who", "cmd/internal/certs"},
	"cmd/internal/probe":        {"cmd/internal/api"},
	"cmd/internal/doctor": {
		"subnet", "subnet/etcdstore", "subnet/who", "backend", "backend/kernel", "backend/userspace", "cmd/internal/api", "cmd/internal/certs", "cmd/internal/probe",
	},
	"cmd/internal/agent":   {"subnet", "subnet/etcdstore", "subnet/leasecache", "backend", "backend/bypass", "backend/extension", "backend/fastpath", "backend/firewall", "backend/kernel", "backend/ports", "backend/sysctl", "backend/task", "backend/underlay", "cmd/internal/api", "cniplugin/attachment"},
	"cniplugin":            {"backend/enforce/pending", "cniplugin/identity", "policy", "subnet", "backend/ports", "cniplugin/attachment", "cniplugin/bridge", "cniplugin/dead"},
	"cniplugin/attachment": {"cniplugin/identity", "policy", "subnet", "backend/ports"},
	"cniplugin/bridge":     {"backend/enforce/pending", "backend/ports"},
	"cniplugin/dead":       {"cniplugin/attachment", "cniplugin/bridge"},
	"cmd/overlayctl":       {"cniplugin/identity", "policy", "policy/manifest", "subnet", "subnet/etcdstore", "subnet/who", "backend", "backend/kernel", "backend/underlay", "backend/userspace", "cniplugin/attachment", "cniplugin/bridge", "cniplugin/dead", "cmd/internal/agent", "cmd/internal/api", "cmd/internal/certs", "cmd/internal/doctor", "cmd/internal/enrol", "cmd/internal/man", "cmd/internal/probe", "cmd/internal/settings", "cmd/internal/version"},
	"cmd/overlayd-docker":  {"backend/enforce/pending", "backend/ports", "cniplugin/attachment", "cniplugin/bridge", "cniplugin/dead", "cniplugin/identity", "policy", "subnet", "cmd/internal/program", "cmd/internal/version"},
	"cmd/overlayd-bgp":     {"subnet/etcdstore", "cmd/internal/program", "cmd/internal/settings", "cmd/internal/version"},
	"cmd/overlayd-tun":     {"backend/kernel", "backend/rtnl", "backend/udptun", "backend/userspace", "cmd/internal/version"},
	"cmd/overlayd": {"backend/task", "backend/bypass", "backend/enforce", "backend/extension", "backend/fastpath", "backend/enforce/pending", "cmd/internal/enforcer", "cniplugin/identity",
		"subnet/who",
		"subnet", "subnet/etcdstore", "subnet/etcdembed", "subnet/leasecache", "backend", "backend/firewall", "backend/kernel", "backend/sysctl", "backend/underlay", "backend/userspace",
		"cniplugin/attachment", "cmd/internal/agent", "cmd/internal/api", "cmd/internal/certs", "cmd/internal/enrol", "cmd/internal/program", "cmd/internal/names", "cmd/internal/networks", "cmd/internal/settings", "cmd/internal/version",
	},
}

// onlyIn names the one package that may import a library.
var onlyIn = map[string]string{
	"go.etcd.io/etcd/client/v3":         "subnet/etcdstore",
	"go.etcd.io/etcd/server/v3/embed":   "subnet/etcdembed",
	"golang.zx2c4.com/wireguard/device": "cmd/overlayd-tun", // its weight stays out of the daemon
}

// TestWeight: what only the BGP speaker needs is not in the daemon, nor in the plugin and overlayctl.
func TestWeight(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "list", "-deps", "./cmd/overlayd", "./cmd/overlayctl", "./cniplugin")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.Lines(string(out)) {
		if strings.Contains(pkg, "gobgp") {
			t.Errorf("the daemon needs %s", pkg)
		}
	}
}

func TestArrows(t *testing.T) {
	t.Parallel()
	for pkg, imports := range listImports(t) {
		allowed, known := arrows[pkg]
		if !known && pkg != "integration" && pkg != "integration/policy" {
			t.Errorf("package %s has no place in the house: say in this test what it may import", pkg)
		}
		for _, path := range imports {
			if ours, ok := strings.CutPrefix(path, module); ok && known && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, against the arrows", pkg, ours)
			}
			if home, ok := onlyIn[path]; ok && home != pkg {
				t.Errorf("%s imports %s, which only %s may", pkg, path, home)
			}
		}
	}
}

// listImports lists what each package of ours imports, tests aside.
func listImports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		all[strings.TrimPrefix(fields[0], module)] = fields[1:]
	}
	if len(all) < len(arrows) {
		t.Fatalf("go list found %d packages, fewer than the %d of the house", len(all), len(arrows))
	}
	return all
}
