package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cniCall is one call of the plugin, as a runtime makes it.
type cniCall struct {
	command, container, netns, ifname, stdin string
}

// do runs the plugin on the host and returns its standard output, what it says in an error, and whether it failed.
func (c cniCall) do(t *testing.T, h *Host) (stdout, msg string, failed bool) {
	t.Helper()
	cmd := h.Command(bin("overlay"))
	cmd.Env = append(cmd.Env, "CNI_COMMAND="+c.command, "CNI_CONTAINERID="+c.container, "CNI_NETNS="+c.netns,
		"CNI_IFNAME="+c.ifname, "CNI_PATH="+bin(""))
	cmd.Stdin = strings.NewReader(c.stdin)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if strings.Contains(stderr.String(), "panic") {
		t.Errorf("the plugin panics:\n%s", &stderr)
	}
	if err == nil {
		return out.String(), "", false
	}
	var e struct {
		Code         int
		Msg, Details string
	}
	if err := json.Unmarshal(out.Bytes(), &e); err != nil || e.Code == 0 {
		t.Errorf("the plugin fails without an error as CNI has it: %v\nstdout: %s\nstderr: %s", err, &out, &stderr)
	}
	return out.String(), e.Msg + ": " + e.Details, true
}

const wholeEnv = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

// TestCNIRefusals calls ADD with what it must refuse: with an error that names the thing, and nothing done.
func TestCNIRefusals(t *testing.T) {
	t.Parallel()
	for _, r := range []struct {
		name  string
		env   string // subnet.env; empty: none
		conf  func(conf map[string]any)
		call  cniCall // what differs from a good call
		want  []string
		whole string // standard input in place of a configuration
		alien bool   // the call is none that CNI knows, so that a DEL of that kind need not succeed
	}{
		{name: "no subnet.env", want: []string{"subnet.env"}},
		{name: "half a subnet.env", env: wholeEnv[:len(wholeEnv)/2], want: []string{"subnet.env"}},
		{name: "subnet.env without MTU", env: strings.Replace(wholeEnv, "FLANNEL_MTU=1450\n", "", 1),
			want: []string{"subnet.env", "FLANNEL_MTU"}},
		{name: "subnet.env with a bad subnet", env: strings.Replace(wholeEnv, "10.5.7.1/24", "10.5.7.1/44", 1),
			want: []string{"subnet.env", "10.5.7.1/44"}},
		{name: "unknown delegate", env: wholeEnv, want: []string{"brigde"},
			conf: func(c map[string]any) { c["delegate"] = map[string]any{"type": "brigde"} }},
		{name: "delegate with a path", env: wholeEnv, want: []string{"../bridge"},
			conf: func(c map[string]any) { c["delegate"] = map[string]any{"type": "../bridge"} }},
		{name: "delegate's type is no string", env: wholeEnv, want: []string{"delegate.type"},
			conf: func(c map[string]any) { c["delegate"] = map[string]any{"type": 1} }},
		{name: "delegate with a name", env: wholeEnv, want: []string{"delegate.name"},
			conf: func(c map[string]any) { c["delegate"] = map[string]any{"name": "x"} }},
		{name: "unknown IPAM", env: wholeEnv, want: []string{"host-locale"},
			conf: func(c map[string]any) { c["ipam"] = map[string]any{"type": "host-locale"} }},
		{name: "unknown version", alien: true, env: wholeEnv, want: []string{"9.9.9"},
			conf: func(c map[string]any) { c["cniVersion"] = "9.9.9" }},
		{name: "container id with a path", alien: true, env: wholeEnv, call: cniCall{container: "../../etc/passwd"},
			want: []string{"../../etc/passwd"}},
		{name: "container id with a newline", alien: true, env: wholeEnv, call: cniCall{container: "a\nb"}, want: []string{"ontainer"}},
		{name: "interface with a path", alien: true, env: wholeEnv, call: cniCall{ifname: "../eth0"}, want: []string{"nterface"}},
		{name: "interface too long", alien: true, env: wholeEnv, call: cniCall{ifname: "eth0123456789abcdef"}, want: []string{"nterface"}},
		{name: "no such namespace", env: wholeEnv, call: cniCall{netns: "/run/netns/none-such"}, want: []string{"none-such"}},
		{name: "standard input is no JSON", alien: true, env: wholeEnv, whole: `{"cniVersion":`, want: []string{"JSON"}},
		{name: "standard input is empty", alien: true, env: wholeEnv, whole: " ", want: []string{"network config", "JSON"}},
		{name: "standard input is a list", alien: true, env: wholeEnv, whole: `[]`, want: []string{"array"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, Stack{V4: true})
			h := lab.NewHost(lab.NewSegment(1), 11)
			c := lab.node("c")
			if r.env != "" {
				writeFile(h, h.SubnetFile(), r.env)
			}
			call := r.call
			call.command = "ADD"
			call.container = or(call.container, "c1")
			call.netns = or(call.netns, c.Path())
			call.ifname = or(call.ifname, "eth0")
			call.stdin = or(r.whole, h.directConf(r.conf))
			before, beforeC := h.Dump(), c.Dump()
			_, msg, failed := call.do(t, h)
			if !failed {
				t.Fatal("ADD succeeds")
			}
			for _, want := range r.want {
				if !strings.Contains(msg, want) {
					t.Errorf("the error does not name %q: %s", want, msg)
				}
			}
			sameDump(t, h.Node, before)
			sameDump(t, c, beforeC)
			if files := leases(filesUnder(t, h.varLib)); len(files) != 0 {
				t.Errorf("files %q left", files)
			}
			if !r.alien {
				call.command = "DEL" // as runtimes do after a failed ADD, until it succeeds
				if _, msg, failed := call.do(t, h); failed {
					t.Errorf("DEL after the refused ADD fails: %s", msg)
				}
			}
		})
	}
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// directConf is the configuration of the plugin when it is called with no cnitool between: all state is under the
// host's own /var/lib.
func (h *Host) directConf(change func(map[string]any)) string {
	conf := h.PluginConf(map[string]any{"isDefaultGateway": true})
	conf["cniVersion"], conf["name"] = "1.1.0", "overlay"
	conf["dataDir"] = filepath.Join(h.varLib, "cni", "overlay")
	conf["ipam"] = map[string]any{"dataDir": filepath.Join(h.varLib, "cni", "networks")}
	if change != nil {
		change(conf)
	}
	if ipam := conf["ipam"].(map[string]any); ipam["dataDir"] == nil {
		ipam["dataDir"] = filepath.Join(h.varLib, "cni", "networks")
	}
	b, err := json.Marshal(conf)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

// TestCNILifecycle calls the plugin as runtimes do, DEL twice and DEL with nothing left among it.
func TestCNILifecycle(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	h := lab.NewHost(lab.NewSegment(1), 11)
	c := lab.node("c")
	writeFile(h, h.SubnetFile(), wholeEnv)
	call := func(command, netns string) cniCall {
		return cniCall{command: command, container: "c1", netns: netns, ifname: "eth0", stdin: h.directConf(nil)}
	}
	must := func(c cniCall) string {
		t.Helper()
		out, msg, failed := c.do(t, h)
		if failed {
			t.Errorf("%s fails: %s", c.command, msg)
		}
		return out
	}
	must(call("DEL", c.Path())) // nerdctl does, before every ADD
	result := must(call("ADD", c.Path()))
	if !strings.Contains(result, "10.5.7.") {
		t.Errorf("ADD answers\n%s", result)
	}
	if route := c.Exec("ip", "route", "get", "10.5.99.1"); !strings.Contains(route, "10.5.7.1") {
		t.Errorf("the container reaches the overlay by %s", route)
	}
	check := call("CHECK", c.Path())
	check.stdin = h.directConf(func(conf map[string]any) { conf["prevResult"] = json.RawMessage(result) })
	must(check)
	c.Exec("ip", "link", "delete", "eth0")
	if _, _, failed := check.do(t, h); !failed {
		t.Error("CHECK is content with a container that has lost its interface")
	}
	if err := os.Remove(h.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	must(call("DEL", "")) // after a reboot: no namespace, no subnet.env
	must(call("DEL", ""))
	if files := leases(filesUnder(t, h.varLib)); len(files) != 0 {
		t.Errorf("files %q left", files)
	}
	_, msg, failed := cniCall{command: "STATUS", stdin: h.directConf(nil)}.do(t, h)
	if !failed || !strings.Contains(msg, "subnet.env") {
		t.Errorf("STATUS without subnet.env: failed %t, %s", failed, msg)
	}
}

// TestCNITwoInterfaces attaches one container twice, and detaches it twice.
func TestCNITwoInterfaces(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	h := lab.NewHost(lab.NewSegment(1), 11)
	c := lab.node("c")
	writeFile(h, h.SubnetFile(), wholeEnv)
	for _, command := range []string{"ADD", "DEL"} {
		for i := range 2 {
			call := cniCall{command: command, container: "c1", netns: c.Path(), ifname: fmt.Sprintf("net%d", i),
				stdin: h.directConf(func(conf map[string]any) { conf["delegate"] = map[string]any{} })}
			if _, msg, failed := call.do(t, h); failed {
				t.Errorf("%s net%d: %s", command, i, msg)
			}
		}
	}
	if files := leases(filesUnder(t, h.varLib)); len(files) != 0 {
		t.Errorf("files %q left", files)
	}
	if links := h.Exec("ip", "-o", "link", "show", "type", "veth"); strings.Count(links, "\n") != 1 {
		t.Errorf("links left beside eth0:\n%s", links)
	}
}
