package main

import (
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// list is a conflist of this host's and libcni's cache.
type list struct {
	*host
	t *testing.T
}

// newList writes a conflist with the network's plugin and others; an empty one stands for that.
func newList(t *testing.T, h *host, plugins ...string) list {
	t.Helper()
	for i := range plugins {
		if plugins[i] == "" {
			plugins[i] = string(h.conf(map[string]any{"capabilities": map[string]any{"ips": true}}))
		}
	}
	text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[%s]}`, h.network, strings.Join(plugins, ","))
	for _, dir := range []string{"net.d", "varlib"} {
		if err := os.MkdirAll(filepath.Join(h.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(h.dir, "net.d", "10.conflist"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return list{h, t}
}

// call runs cnitool, which is libcni with its cache, and that is in /var/lib/cni.
func (l list) call(command, netns string, env ...string) error {
	l.t.Helper()
	script := `mount --bind "$1" /var/lib && exec "$2" "$3" "$4" "$5"`
	cmd := exec.Command("nsenter", "--net="+l.ns, "unshare", "--mount", "sh", "-c", script, "sh",
		filepath.Join(l.dir, "varlib"), filepath.Join(l.bin, "cnitool"), command, l.network, netns)
	cmd.Env = append(os.Environ(), "CNI_PATH="+l.bin, "NETCONFPATH="+filepath.Join(l.dir, "net.d"))
	cmd.Env = append(cmd.Env, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cnitool %s: %w\n%s", command, err, out)
	}
	return nil
}

func (l list) must(command, netns string, env ...string) {
	l.t.Helper()
	if err := l.call(command, netns, env...); err != nil {
		l.t.Fatal(err)
	}
}

const (
	tuning    = `{"type":"tuning","mac":"02:aa:00:00:00:07","mtu":1300,"sysctl":{"net.ipv4.conf.eth0.arp_notify":"0"},"dataDir":"/var/lib/tuning"}`
	bandwidth = `{"type":"bandwidth","ingressRate":8000000,"ingressBurst":8000000,"egressRate":8000000,"egressBurst":8000000}`
	firewall  = `{"type":"firewall","backend":"iptables"}`
	portmap   = `{"type":"portmap","snat":true,"backend":"nftables","capabilities":{"portMappings":true}}`
	sbr       = `{"type":"sbr"}`
)

// cnitoolID is the container's id that cnitool makes of its namespace.
func cnitoolID(netns string) string {
	return fmt.Sprintf("cnitool-%x", sha512.Sum512([]byte(netns)))[:len("cnitool-")+20]
}

// What is chained changes the container's MAC, MTU and routes: CHECK goes by the result that comes of it, and DEL finds what
// it is to remove, also of a container that is gone.
func TestChained(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		plugins []string
	}{
		{"tuning", []string{"", tuning}},
		{"sbr", []string{"", sbr}},
		{"bandwidth", []string{"", bandwidth}},
		{"firewall", []string{"", firewall}},
		{"all", []string{"", tuning, bandwidth, portmap, sbr}},
		{"all, otherwise", []string{"", sbr, portmap, bandwidth, tuning}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			l := newList(t, h, tt.plugins...)
			caps := `CAP_ARGS={"ips":["10.5.72.7"],"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
			for _, name := range []string{"c1", "gone"} {
				netns := h.addNamespace(t, name)
				l.must("add", netns, caps)
				mustRun(t, "nsenter", "--net="+netns, "ping", "-n", "-I10.5.72.7", "-c1", "-W2", "10.5.72.1")
				l.must("check", netns, caps)
				if name == "gone" {
					mustRun(t, "ip", "netns", "del", filepath.Base(netns))
				} else {
					ip(t, netns, "route", "flush", "table", "all", "10.5.0.0/16")
					if err := l.call("check", netns, caps); err == nil || !strings.Contains(err.Error(), "10.5.0.0/16") {
						t.Errorf("CHECK without a route: %v", err)
					}
				}
				err := l.call("del", netns, caps)
				if err != nil && name == "gone" && strings.Contains(err.Error(), `plugin type="sbr" failed`) {
					// It is asked before this one, wants the namespace, and leaves a file of its name.
					_, err = h.call(request{command: "DEL", id: cnitoolID(netns), ifName: "eth0", netns: netns})
				}
				if err != nil {
					t.Fatal(err)
				}
				h.wantClean(t)
			}
		})
	}
}

// Another network's interface in the same container is none of this one's, whichever comes and goes first.
func TestMacvlanBesideIt(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	ip(t, h.ns, "link", "add", "wire", "up", "type", "veth", "peer", "other")
	netns := h.addNamespace(t, "c1")
	macvlan := func(command string) {
		t.Helper()
		conf := `{"cniVersion":"1.0.0","name":"lan","type":"macvlan","master":"wire","ipam":{"type":"host-local",` +
			`"dataDir":"` + filepath.Join(h.dir, "lan") + `","ranges":[[{"subnet":"192.168.7.0/24"}]]}}`
		cmd := exec.Command("nsenter", "--net="+h.ns, filepath.Join(h.bin, "macvlan"))
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "CNI_PATH=" + h.bin, "CNI_COMMAND=" + command, "CNI_CONTAINERID=c1",
			"CNI_IFNAME=lan0", "CNI_NETNS=" + netns}
		cmd.Stdin = strings.NewReader(conf)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("macvlan %s: %v\n%s", command, err, out)
		}
	}
	r := request{id: "c1", ifName: "eth0", netns: netns}
	for _, first := range []bool{true, false} {
		if first {
			macvlan("ADD")
		}
		_, result := h.mustAdd(t, r)
		if !first {
			macvlan("ADD")
		}
		h.mustCall(t, request{command: "CHECK", id: "c1", ifName: "eth0", netns: netns, more: map[string]any{"prevResult": json.RawMessage(result)}})
		if first {
			macvlan("DEL")
			ip(t, netns, "link", "show", "eth0")
		}
		h.mustCall(t, r.del())
		if !first {
			ip(t, netns, "link", "show", "lan0")
			macvlan("DEL")
		}
	}
}

// A second ADD, after a later plugin failed or a CHECK: the port mapped on the host leads to where the container is, and DEL
// leaves no rule.
func TestSecondAddKeepsPortMappings(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	l := newList(t, h, "", portmap)
	netns := h.addNamespace(t, "c1")
	l.must("add", h.addNamespace(t, "other")) // whose address would be the next
	caps := `CAP_ARGS={"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`
	for range 3 {
		l.must("add", netns, caps)
		if to := strings.Count(mustRun(t, "nsenter", "--net="+h.ns, "nft", "list", "ruleset"), "10.5.72.3:80"); to == 0 {
			t.Error("the port leads elsewhere")
		}
	}
	if rules := mustRun(t, "nsenter", "--net="+h.ns, "nft", "list", "ruleset"); strings.Count(rules, "dnat to 10.") != strings.Count(rules, "10.5.72.3:80") {
		t.Errorf("rules lead to several addresses:\n%s", rules)
	}
	l.must("del", netns, caps)
	if rules := mustRun(t, "nsenter", "--net="+h.ns, "nft", "list", "ruleset"); strings.Contains(rules, "8080") {
		t.Errorf("left:\n%s", rules)
	}
}
