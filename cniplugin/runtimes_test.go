package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// Nomad runs every binary with no arguments and looks for a semantic version.
func TestVersion(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	semver := regexp.MustCompile(`^CNI overlay plugin v\d+\.\d+\.\d+(-\w+)?\n`)
	for _, args := range [][]string{nil, {"--version"}} {
		cmd := exec.Command(filepath.Join(h.bin, "overlay"), args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		if err != nil || !semver.Match(out) {
			t.Errorf("%v: %v: %q", args, err, out)
		}
	}
	out, err := h.call(request{command: "VERSION"})
	var versions struct{ SupportedVersions []string }
	if err == nil {
		err = json.Unmarshal(out, &versions)
	}
	if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; err != nil || !slices.Equal(versions.SupportedVersions, want) {
		t.Errorf("%v: %s", err, out)
	}
}

// Each version has the commands that it knows, and the result that it wants.
func TestConfigVersions(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	netns := h.addNamespace(t, "c1")
	for _, tt := range []struct {
		version       string
		check, status bool // whether the version knows CHECK; STATUS and GC
	}{
		{"0.3.1", false, false}, {"0.4.0", true, false}, {"1.0.0", true, false}, {"1.1.0", true, true},
	} {
		r := request{id: "c1", ifName: "eth0", netns: netns, more: map[string]any{"cniVersion": tt.version}}
		_, result := h.mustAdd(t, r)
		var said struct {
			CNIVersion string
			IPs        []struct{ Version, Address string }
		}
		if err := json.Unmarshal(result, &said); err != nil || said.CNIVersion != tt.version || len(said.IPs) != 1 ||
			(said.IPs[0].Version == "4") != strings.HasPrefix(tt.version, "0.") {
			t.Errorf("asked in %s: %v: %s", tt.version, err, result)
		}
		for command, known := range map[string]bool{"CHECK": tt.check, "STATUS": tt.status, "GC": tt.status} {
			call := r
			call.command, call.more = command, map[string]any{"cniVersion": tt.version, "prevResult": result,
				"cni.dev/valid-attachments": []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}}
			if _, err := h.call(call); (err == nil) != known {
				t.Errorf("%s in %s: %v, want success: %t", command, tt.version, err, known)
			}
		}
		r.command = "DEL"
		h.mustCall(t, r)
	}
	_, err := h.call(request{command: "ADD", id: "c1", ifName: "eth0", netns: netns, more: map[string]any{"cniVersion": "9.9.9"}})
	wantError(t, err, types.ErrIncompatibleCNIVersion, "")
	h.wantClean(t)
}

// The ways in which runtimes call; see docs.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)

	t.Run("nerdctl: DEL before ADD, address and MAC asked for", func(t *testing.T) {
		netns := h.addNamespace(t, "nc")
		r := request{id: "nc", ifName: "eth0", args: "IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=h;IP=10.5.72.77"}
		r.more = map[string]any{"runtimeConfig": map[string]any{
			"ips": []string{"10.5.72.77/24"}, "mac": "02:aa:00:00:00:01", "portMappings": []any{},
		}}
		r.command = "DEL"
		h.mustCall(t, r)
		r.netns = netns
		if ips, _ := h.mustAdd(t, r); fmt.Sprint(ips) != "[10.5.72.77/24]" {
			t.Errorf("addresses %v", ips)
		}
		if link := ip(t, netns, "link", "show", "eth0"); !strings.Contains(link, "02:aa:00:00:00:01") {
			t.Errorf("MAC: %s", link)
		}
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
	t.Run("containerd: DEL twice, then without a namespace", func(t *testing.T) {
		r := request{
			id: "cd", ifName: "eth0", netns: h.addNamespace(t, "cd"),
			args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=cd;K8S_POD_UID=u",
		}
		h.mustAdd(t, r)
		h.mustCall(t, r.del())
		r.netns = ""
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
	t.Run("Nomad: DEL with no CNI_ARGS", func(t *testing.T) {
		r := request{
			id: "no", ifName: "eth0", netns: h.addNamespace(t, "no"),
			args: "IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_JOB_ID=web;NOMAD_ALLOC_ID=no",
		}
		h.mustAdd(t, r)
		r.args = ""
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
	t.Run("the namespace went first", func(t *testing.T) {
		r := request{id: "gone", ifName: "eth0", netns: h.addNamespace(t, "gone")}
		h.mustAdd(t, r)
		mustRun(t, "ip", "netns", "del", filepath.Base(r.netns))
		h.mustCall(t, r.del())
		h.wantClean(t)
	})
}

// cnitool is libcni: what runtimes link, with its cache and chaining.
func TestCnitool(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	netns := h.addNamespace(t, "c1")
	for _, dir := range []string{"net.d", "varlib"} {
		if err := os.Mkdir(filepath.Join(h.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"plugins":[%s,{"type":"portmap","capabilities":{"portMappings":true}}]}`,
		h.network, h.conf(map[string]any{"capabilities": map[string]any{"ips": true}}))
	if err := os.WriteFile(filepath.Join(h.dir, "net.d", "10-overlay.conflist"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	cnitool := func(command string, env ...string) {
		t.Helper()
		// libcni keeps its cache in /var/lib/cni.
		script := `mount --bind "$1" /var/lib && exec "$2" "$3" "$4" "$5"`
		cmd := exec.Command("nsenter", "--net="+h.ns, "unshare", "--mount", "sh", "-c", script, "sh",
			filepath.Join(h.dir, "varlib"), filepath.Join(h.bin, "cnitool"), command, h.network, netns)
		cmd.Env = append(os.Environ(), "CNI_PATH="+h.bin, "NETCONFPATH="+filepath.Join(h.dir, "net.d"))
		cmd.Env = append(cmd.Env, env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cnitool %s: %v\n%s", command, err, out)
		}
	}
	caps := `CAP_ARGS={"ips":["10.5.72.50"],"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
	cnitool("status")
	cnitool("del", caps)
	cnitool("add", caps)
	cnitool("check", caps)
	if got := h.reserved(t); !slices.Contains(got, "10.5.72.50") {
		t.Errorf("addresses held: %v", got)
	}
	if err := os.Remove(h.subnetFile()); err != nil {
		t.Fatal(err)
	}
	cnitool("check", caps)
	cnitool("del", caps)
	h.wantClean(t)
	if err := os.WriteFile(h.subnetFile(), []byte(dualLease), 0o600); err != nil {
		t.Fatal(err)
	}
	cnitool("add")
	cnitool("gc")
	h.wantClean(t)
}
