package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/go-cni"
)

// nomadClient as first argument makes the test binary Nomad's client, as far as networks go: what networking_cni.go of
// Nomad 1.10 asks of the go-cni that it pins. The conflist, the allocation's id and its namespace follow; on standard
// input it is told what to do, a word a line, and answers with a line each.
const nomadClient = "nomad-client"

// nomadAnswer has the addresses of the allocation after setup, and the nameservers that its tasks get, or the error.
type nomadAnswer struct {
	Addrs []string
	DNS   []string
	Err   string
}

func runNomadClient(conflist, alloc, netns string) error {
	c, err := cni.New(cni.WithPluginDir([]string{"/opt/cni/bin"}), cni.WithInterfacePrefix("eth"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	ports := cni.WithCapabilityPortMap([]cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}})
	all := []cni.NamespaceOpts{ports, cni.WithArgs("IgnoreUnknown", "true"), cni.WithArgs("NOMAD_JOB_ID", "web=1"), cni.WithArgs("NOMAD_GROUP_NAME", "front"),
		cni.WithArgs("NOMAD_NAMESPACE", "dev"), cni.WithArgs("LABELS", "app:web")}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var a nomadAnswer
		err := c.Status() // before everything, a teardown too
		if cni.IsCNINotInitialized(err) {
			err = c.Load(cni.WithConfListFile(conflist))
		}
		if err == nil {
			switch lines.Text() {
			case "setup":
				var result *cni.Result
				for range 3 {
					if result, err = c.Setup(ctx, alloc, netns, all...); err == nil {
						a.Addrs, a.DNS = nomadAddrs(result), result.DNS[0].Nameservers
						break
					}
				}
			case "check":
				err = c.Check(ctx, alloc, netns, all...)
			case "teardown":
				err = c.Remove(ctx, alloc, netns, ports) // the arguments are forgotten by then
			}
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// nomadAddrs are the addresses of the first interface in the sandbox that has some: the allocation's.
func nomadAddrs(result *cni.Result) (addrs []string) {
	for _, name := range slices.Sorted(maps.Keys(result.Interfaces)) {
		i := result.Interfaces[name]
		if i.Sandbox == "" || len(i.IPConfigs) == 0 {
			continue
		}
		for _, ip := range i.IPConfigs {
			addrs = append(addrs, ip.IP.String())
		}
		return addrs
	}
	return nil
}

// nomad starts a client in the chain's box, one life of an agent, with the conflist for Nomad at the given cniVersion. What
// it returns does a step and gives the allocation's addresses.
func (c *chain) nomad(cniVersion string) (step func(string) (string, error)) {
	c.t.Helper()
	conflist, err := os.ReadFile("../etc/nomad/10-overlay.conflist")
	if err != nil {
		c.t.Fatal(err)
	}
	conflist = []byte(strings.Replace(string(conflist), `"1.0.0"`, fmt.Sprintf("%q", cniVersion), 1))
	if err := os.WriteFile(filepath.Join(c.box.varLib, "nomad.conflist"), conflist, 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(c.box.resolvConf(), nil, 0o600); err != nil { // as a daemon that answers for names
		c.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := c.box.Command(c.box.inside(self, nomadClient, "/var/lib/nomad.conflist", "0b9e7c52-52d6-4b0a", "/run/netns/c")...)
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	answers := json.NewDecoder(out)
	return func(what string) (string, error) {
		c.t.Helper()
		var a nomadAnswer
		_, err := io.WriteString(in, what+"\n")
		if err = errors.Join(err, answers.Decode(&a)); err != nil {
			c.t.Fatalf("%s: %v", what, err)
		}
		if a.Err != "" {
			return "", errors.New(a.Err)
		}
		if what == "setup" && len(a.DNS) == 0 {
			c.t.Error("the allocation's tasks are not told whom to ask for names")
		}
		return strings.Join(a.Addrs, " "), nil
	}
}

// TestNomadClient drives the plugins as Nomad's client does, with the very library: no lease at first, a restart of the
// agent, an allocation that has lost its address, and a teardown while there is no lease.
func TestNomadClient(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	subnetEnv := c.box.SubnetFile()
	must := func(step func(string) (string, error), what string) string {
		t.Helper()
		addrs, err := step(what)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return addrs
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}

	agent := c.nomad("1.0.0")
	move(subnetEnv, subnetEnv+".away")
	if _, err := agent("setup"); err == nil || !strings.Contains(err.Error(), "is overlayd running?") {
		t.Fatalf("setup before overlayd has a lease: %v", err)
	}
	move(subnetEnv+".away", subnetEnv)
	if addrs := must(agent, "setup"); addrs != "10.5.7.2 fc00:5:0:7::2" {
		t.Errorf("the allocation has %s", addrs)
	}
	if lo := c.ip("link", "show", "lo"); !strings.Contains(lo, "LOOPBACK,UP") {
		t.Errorf("an exec task has no loopback: %s", lo)
	}
	c.wantMapped(1)
	record, err := os.ReadFile(filepath.Join(c.box.varLib, "cni", "overlay", "overlay", "0b9e7c52-52d6-4b0a:eth0.json"))
	const identity = `"endpoint":{"namespace":"dev","name":"front-0b9e7c52","labels":{"app":"web","overlayd/nomad-group":"front"}}`
	if err != nil || !strings.Contains(string(record), identity) || !strings.Contains(string(record), "is no label") {
		t.Errorf("the record has no %s: %v\n%s", identity, err, record)
	}

	agent = c.nomad("1.0.0") // restarted
	move(subnetEnv, subnetEnv+".away")
	must(agent, "check")
	move(subnetEnv+".away", subnetEnv)
	c.ip("address", "delete", "10.5.7.2/24", "dev", "eth0")
	if _, err := agent("check"); err == nil {
		t.Error("CHECK is content with an allocation that has lost its address")
	}
	c.box.Run("ip", "netns", "delete", "c") // what Nomad does then
	c.box.Run("ip", "netns", "add", "c")
	must(agent, "setup")
	must(agent, "teardown")
	c.wantMapped(0)
	c.box.WaitNothingLeft()

	agent = c.nomad("1.1.0") // asks for STATUS before everything; overlayd is not running all the while
	must(agent, "setup")
	must(agent, "teardown")
	must(agent, "setup")
	move(subnetEnv, subnetEnv+".away")
	must(agent, "teardown")
	c.wantMapped(0)
	c.box.WaitNothingLeft()
}
