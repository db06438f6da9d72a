package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// netavarkCall is what netavark writes to a plugin for a container, as its documentation has it (plugin-API.md).
const netavarkCall = `{
  "container_id": "752947ff91f961eb3cb47ffe9315016979f3ffbec09e4d96a4fae3fb03391697",
  "container_name": "testctr",
  "port_mappings": [
    {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp,udp", "range": 2},
    {"container_port": 90, "host_ip": "127.0.0.1", "host_port": 9000, "protocol": "", "range": 0}
  ],
  "network": {
    "dns_enabled": false, "driver": "overlay", "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
    "internal": false, "ipv6_enabled": true, "name": "web", "network_interface": null, "options": {"namespace": "shop"},
    "ipam_options": {"driver": "none"}, "subnets": [{"gateway": "10.5.7.1", "lease_range": null, "subnet": "10.5.0.0/16"}],
    "routes": null, "network_dns_servers": null
  },
  "network_options": {
    "aliases": ["752947ff91f9"], "interface_name": "eth0", "static_ips": ["10.5.7.50"], "static_mac": "aa:bb:cc:dd:aa:00", "options": null
  }
}`

// netavarkHost is a host with a lease and no daemon, and netavark's plugin.
type netavarkHost struct{ *Box }

func newNetavarkHost(t *testing.T) netavarkHost {
	t.Helper()
	lab := newLab(t, Stack{V4: true, V6: true})
	b := lab.NewBox(lab.NewSegment(1), 11)
	env := wholeEnv + "FLANNEL_IPV6_NETWORK=fc00:5::/48\nFLANNEL_IPV6_SUBNET=fc00:5:0:7::1/64\n"
	writeFile(b.Host, b.SubnetFile(), env)
	red := filepath.Join(filepath.Dir(b.SubnetFile()), "red")
	if err := os.MkdirAll(red, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(b.Host, filepath.Join(red, "subnet.env"), strings.ReplaceAll(wholeEnv, "10.5.", "10.6."))
	b.Run("ip", "netns", "add", "c")
	return netavarkHost{b}
}

// call calls the plugin as netavark does, and returns what it prints, which must be JSON if there is any.
func (h netavarkHost) call(input string, args ...string) (answer map[string]any, err error) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.varLib, "input"), []byte(input), 0o600); err != nil {
		h.t.Fatal(err)
	}
	cmd := h.Command(h.inside(append([]string{"sh", "-c", `exec /opt/cni/bin/overlay "$@" </var/lib/input`, "sh"}, args...)...)...)
	out, err := cmd.Output()
	if len(out) > 0 {
		if err := json.Unmarshal(out, &answer); err != nil {
			h.t.Fatalf("%v: %v in %s", args, err, out)
		}
	}
	return answer, err
}

func (h netavarkHost) refused(input, want string, args ...string) {
	h.t.Helper()
	answer, err := h.call(input, args...)
	said, _ := answer["error"].(string)
	if err == nil || !strings.Contains(said, want) || strings.Contains(said, "\n") {
		h.t.Errorf("%v: %v: %q, want %q", args, err, said, want)
	}
}

// TestNetavark calls the plugin by netavark's protocol: create, setup, teardown and info, also again, and for what is gone.
func TestNetavark(t *testing.T) {
	t.Parallel()
	h := newNetavarkHost(t)
	info, err := h.call("", "info")
	if err != nil || info["api_version"] != "1.0.0" || info["version"] == "" {
		t.Errorf("info: %v, %v", info, err)
	}
	const path = "/run/netns/c"
	answer, err := h.call(netavarkCall, "setup", path)
	if err != nil {
		t.Fatalf("setup: %v: %v", err, answer)
	}
	want := map[string]any{
		"dns_search_domains": nil, "dns_server_ips": nil,
		"interfaces": map[string]any{"eth0": map[string]any{"mac_address": "aa:bb:cc:dd:aa:00", "subnets": []any{
			map[string]any{"gateway": "10.5.7.1", "ipnet": "10.5.7.50/24"},
			map[string]any{"gateway": "fc00:5:0:7::1", "ipnet": "fc00:5:0:7::2/64"},
		}}},
	}
	if diff := cmp.Diff(want, answer); diff != "" {
		t.Errorf("setup (-want +got):\n%s", diff)
	}
	if answer, err := h.call(netavarkCall, "setup", path); err != nil { // podman was killed before it heard
		t.Errorf("setup again: %v: %v", err, answer)
	}
	mapped := func(want int) {
		t.Helper()
		rules := h.Exec("nft", "list", "ruleset")
		if n := len(regexp.MustCompile(`dnat (ip )?to 10\.5\.7\.50:`).FindAllString(rules, -1)); n != want {
			t.Errorf("not %d rules map ports:\n%s", want, rules)
		}
	}
	mapped(5)
	record, err := os.ReadFile(filepath.Join(h.varLib, "cni/overlay/web/752947ff91f961eb3cb47ffe9315016979f3ffbec09e4d96a4fae3fb03391697:eth0.json"))
	if err != nil || !strings.Contains(string(record), `"endpoint":{"namespace":"shop","name":"testctr"}`) || !strings.Contains(string(record), `"guard":"bridged"`) {
		t.Errorf("the record is %s, %v", record, err)
	}
	second := strings.NewReplacer(`"web"`, `"more"`, "eth0", "eth1", `{"namespace": "shop"}`, `{"network": "red"}`,
		`["10.5.7.50"]`, "null", `"aa:bb:cc:dd:aa:00"`, "null", `"internal": false`, `"internal": true`).Replace(netavarkCall)
	if answer, err := h.call(second, "setup", path); err != nil {
		t.Errorf("setup of a second network: %v: %v", err, answer)
	}
	if routes := h.Run("ip", "-n", "c", "-4", "route"); !strings.Contains(routes, "default via 10.5.7.1 dev eth0") || !strings.Contains(routes, "10.6.0.0/16 via 10.6.7.1 dev eth1") {
		t.Errorf("of two networks the container has the routes\n%s", routes)
	}
	mapped(5)

	third := strings.Replace(netavarkCall, "752947ff91f9", "852947ff91f9", 1)
	h.Run("ip", "netns", "add", "d")
	h.refused(third, "10.5.7.50 is not available", "setup", "/run/netns/d")
	h.refused(third, "needs the absolute path", "setup")
	h.refused(strings.Replace(third, "852947", "../852947", 1), "invalid characters", "setup", "/run/netns/d")
	h.refused(`{"container_id": 7}`, "the container: ", "setup", path)
	if answer, err := h.call(third, "teardown", "/run/netns/d"); err != nil {
		t.Errorf("teardown of what was not set up: %v: %v", err, answer)
	}

	if answer, err := h.call(second, "teardown", path); err != nil || len(answer) > 0 {
		t.Errorf("teardown: %v: %v", err, answer)
	}
	h.Run("ip", "netns", "delete", "c") // the container has died, and the host has no lease any more
	if err := os.Remove(h.SubnetFile()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if answer, err := h.call(netavarkCall, "teardown", path); err != nil || len(answer) > 0 {
			t.Errorf("teardown: %v: %v", err, answer)
		}
	}
	mapped(0)
	h.WaitNothingLeft()
}

// TestNetavarkCreate makes networks, and refuses what would have no effect.
func TestNetavarkCreate(t *testing.T) {
	t.Parallel()
	h := newNetavarkHost(t)
	network := func(more string) string {
		return `{"name": "web", "id": "2f25", "driver": "overlay", "network_interface": "", "created": "2026-11-28T15:11:53Z", "ipv6_enabled": false,
			"dns_enabled": true, "ipam_options": {}, "internal": false` + more + `}`
	}
	answer, err := h.call(network(""), "create")
	if err != nil {
		t.Fatalf("create: %v: %v", err, answer)
	}
	want := map[string]any{
		"name": "web", "id": "2f25", "driver": "overlay", "network_interface": "", "created": "2026-11-28T15:11:53Z", "internal": false,
		"dns_enabled": false, "ipv6_enabled": true, "ipam_options": map[string]any{"driver": "none"}, "subnets": []any{
			map[string]any{"subnet": "10.5.0.0/16", "gateway": "10.5.7.1"}, map[string]any{"subnet": "fc00:5::/48", "gateway": "fc00:5:0:7::1"},
		},
	}
	if diff := cmp.Diff(want, answer); diff != "" {
		t.Errorf("create (-want +got):\n%s", diff)
	}
	answer, err = h.call(network(`, "internal": true, "options": {"network": "red", "namespace": "shop"}`), "create")
	if subnets := mustJSON(t, answer["subnets"]); err != nil || string(subnets) != `[{"subnet":"10.6.0.0/16"}]` {
		t.Errorf("create of a network that has a name: %v: %s", err, mustJSON(t, answer))
	}
	for more, want := range map[string]string{
		`, "subnets": [{"subnet": "10.9.0.0/24"}]`:  "--subnet, --gateway, --ip-range",
		`, "options": {"mtu": "1400"}`:              `option "mtu": unknown`,
		`, "options": {"network": "../red"}`:        "at most 11 lower case letters",
		`, "options": {"network": "blue"}`:          "blue/subnet.env does not exist: is overlayd running?",
		`, "options": {"namespace": "No"}`:          "no name of a namespace",
		`, "ipam_options": {"driver": "dhcp"}`:      "--ipam-driver dhcp",
		`, "routes": [{"destination": "10.0.0.0"}]`: "--route",
		`, "network_dns_servers": ["10.0.0.1"]`:     "--dns",
	} {
		h.refused(network(more), want, "create")
	}
	h.refused("[]", "create: the network: ", "create")
}
