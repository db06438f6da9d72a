package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newMounted is a host with a lease and the shipped plugins, and no daemon.
func newMounted(t *testing.T) *mounted {
	t.Helper()
	lab := newLab(t, Stack{V4: true})
	h := lab.NewHost(lab.NewSegment(1), 11)
	h.SetConf(map[string]any{"cniVersion": "1.0.0", "name": "overlay", "plugins": []any{
		h.PluginConf(map[string]any{"isDefaultGateway": true, "hairpinMode": true}),
		map[string]any{
			"type": "portmap", "snat": true, "backend": "nftables", "capabilities": map[string]bool{"portMappings": true},
		},
	}})
	writeFile(h, h.SubnetFile(), wholeEnv)
	return h.mount()
}

// TestNetnsCommands makes and removes network namespaces on the overlay.
func TestNetnsCommands(t *testing.T) {
	t.Parallel()
	m := newMounted(t)
	name := m.Name + "web"
	path := netnsDir + "/" + name
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", name).Run() }) // should del not come to it
	refused := func(want string, args ...string) {
		t.Helper()
		if out, err := m.Run(m.overlayctl(args...)...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%v: %v, want %q\n%s", args, err, want, out)
		}
	}
	refused("exit status 2", "netns", "add", "../x")
	refused("is none that overlayctl netns add has made", "netns", "del", name)
	refused("--label", "netns", "add", name, "--label", "a b=c")
	refused("--port", "netns", "add", name, "--port", "http")
	refused("--namespace", "netns", "add", name, "--namespace", "No")
	if err := os.Rename(m.SubnetFile(), m.SubnetFile()+".away"); err != nil {
		t.Fatal(err)
	}
	refused("is overlayd running?", "netns", "add", name)
	if _, err := os.Stat(path); err == nil {
		t.Error("the namespace that could not be attached is left")
	}
	if err := os.Rename(m.SubnetFile()+".away", m.SubnetFile()); err != nil {
		t.Fatal(err)
	}

	if out := m.Must(m.overlayctl("netns", "add", name, "--namespace", "dev", "--name", "web", "--label", "app=web", "--label", "tier=",
		"--port", "http:80/tcp")...); out != path+"\n" {
		t.Errorf("add prints %q", out)
	}
	m.Must("nsenter", "--net="+path, "ping", "-n", "-c1", "-W2", "10.5.7.1")
	m.Must("nsenter", "--net="+path, "ping", "-n", "-c1", "-W2", "127.0.0.1")
	wantEndpoint := func(want string) {
		t.Helper()
		out := m.Must(bin("overlayctl"), "--config", "/dev/null", "--run-dir", m.RunDir, "endpoints", "list", "--cni-conf-dir", m.confs, "-o", "wide")
		if fields := strings.Fields(out); strings.Join(fields[max(0, len(fields)-8):], " ") != want {
			t.Errorf("endpoints list has not %s:\n%s", want, out)
		}
	}
	wantEndpoint("dev web 10.5.7.2 ? app=web,tier= http:80/tcp overlay netns-" + name)
	m.Must(bin("overlayctl"), "--config", "/dev/null", "--run-dir", m.RunDir, "endpoints", "label", "dev/web", "tier-", "app=shop", "--cni-conf-dir", m.confs)
	wantEndpoint("dev web 10.5.7.2 ? app=shop http:80/tcp overlay netns-" + name)
	refused("exists already", "netns", "add", name)
	var list []struct {
		Name, Path string
		Addresses  []string
	}
	if err := json.Unmarshal([]byte(m.Must(m.overlayctl("netns", "list", "-o", "json")...)), &list); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(list); got != fmt.Sprintf("[{%s %s [10.5.7.2]}]", name, path) {
		t.Errorf("list: %s", got)
	}

	second := m.Name + "red"
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", second).Run() })
	refused(`has no network of type overlay with "network": "red"`, "netns", "add", second, "--overlay-network", "red")
	plugin := m.PluginConf(map[string]any{"isDefaultGateway": true})
	plugin["network"], plugin["delegate"] = "red", map[string]any{}
	plugin["subnetFile"] = m.SubnetFile() + ".red"
	writeFile(m.Host, m.SubnetFile()+".red", strings.ReplaceAll(wholeEnv, "10.5.", "10.6."))
	conflist := mustJSON(t, map[string]any{"cniVersion": "1.0.0", "name": "red", "plugins": []any{plugin}})
	writeFile(m.Host, filepath.Join(m.confs, "20-red.conflist"), string(conflist))
	m.Must(m.overlayctl("netns", "add", second, "--overlay-network", "red")...)
	if out := m.Must(m.overlayctl("netns", "list")...); !strings.Contains(out, "10.6.7.2") || !strings.Contains(out, "10.5.7.2") {
		t.Errorf("list of two networks:\n%s", out)
	}
	if out := m.Must("ip", "-o", "link", "show", "master", "ov-red"); strings.Count(out, "oveth") != 1 {
		t.Errorf("the bridge of the network has the ports\n%s", out)
	}
	m.Must(m.overlayctl("netns", "del", second)...)

	m.Must(m.overlayctl("netns", "del", name)...)
	if _, err := os.Stat(path); err == nil {
		t.Error("the namespace is left")
	}
	refused("is none that overlayctl netns add has made", "netns", "del", name)
	if files := leases(filesUnder(t, m.varLib)); len(files) != 0 {
		t.Errorf("files %q left", files)
	}

	other := m.lab.node("other") // somebody else's
	refused("is none that overlayctl netns add has made", "netns", "del", other.Name)
	refused("exists already", "netns", "add", other.Name)
	other.Exec("true")
}
