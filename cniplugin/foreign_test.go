package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// state is what ip(8) shows of namespaces.
func state(t *testing.T, namespaces ...string) string {
	t.Helper()
	all := ""
	for _, ns := range namespaces {
		for _, args := range []string{"addr", "-4 route show table all", "-6 route show table all"} {
			all += ip(t, ns, strings.Fields(args)...)
		}
	}
	// The kernel is late with these.
	return regexp.MustCompile(`(?m) state \w+|<\S+>| tentative|^.*(Error: Peer netns|valid_lft| fe80:).*\n`).ReplaceAllString(all, "")
}

// containerd's sample network has cni0 too: its containers lost their gateway. With a name of its own the network is
// attached beside it.
func TestBridgeOfAnother(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, lease, address string }{
		{"IPv4", v4Lease, "10.88.0.1/16"},
		{"dual stack", dualLease, "2001:db8:4860::1/64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tt.lease)
			ip(t, h.ns, "link", "add", "cni0", "up", "type", "bridge")
			ip(t, h.ns, "addr", "add", tt.address, "dev", "cni0", "nodad")
			ip(t, h.ns, "link", "add", "port", "up", "master", "cni0", "type", "veth", "peer", "other")
			ip(t, h.ns, "link", "set", "other", "up")
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
			before := state(t, h.ns, r.netns)
			_, _, err := h.add(r)
			wantError(t, err, types.ErrInvalidNetworkConfig, "bridge cni0: it has "+tt.address)
			wantError(t, err, types.ErrInvalidNetworkConfig, `"delegate": {"bridge": "overlay0"}`)
			h.mustCall(t, r.del())
			if diff := cmp.Diff(before, state(t, h.ns, r.netns)); diff != "" {
				t.Errorf("a refused ADD changed something (-before +after):\n%s", diff)
			}
			if held := h.reserved(t); len(held) != 0 {
				t.Errorf("addresses left: %v", held)
			}

			r.more = map[string]any{"delegate": map[string]any{"bridge": "overlay0"}}
			ips, _ := h.mustAdd(t, r)
			mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-W2", gateway(ips[0]))
			if shown := ip(t, h.ns, "addr", "show", "cni0"); !strings.Contains(shown, tt.address) {
				t.Errorf("the other bridge has: %s", shown)
			}
			h.mustCall(t, r.del())
		})
	}
}

// What is not marked as ours but has addresses of the network is taken over: flannel's bridge, or that of an older version. So
// is one that is marked for another network and has none of its addresses any more.
func TestBridgeOfBefore(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	ip(t, h.ns, "link", "add", "cni0", "up", "type", "bridge")
	ip(t, h.ns, "addr", "add", "10.5.9.1/24", "dev", "cni0")
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	for _, lease := range []string{v4Lease, strings.ReplaceAll(v4Lease, "10.5.", "10.6.")} {
		h.write(t, lease)
		ips, _ := h.mustAdd(t, r)
		mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-W2", gateway(ips[0]))
		if shown := ip(t, h.ns, "-4", "-o", "addr", "show", "cni0"); strings.Count(shown, "\n") != 1 {
			t.Errorf("the bridge has: %s", shown)
		}
		h.mustCall(t, r.del())
		ip(t, h.ns, "addr", "flush", "dev", "cni0", "scope", "global") // the daemon does, of an empty bridge
	}
}

// A bridge belongs to one network: containers of another one are not plugged into it, be it a gateway or not, and whoever plugs
// them. Those that are on it stay.
func TestBridgeOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	red, blue := strings.ReplaceAll(dualLease, "10.5.", "10.6."), v4Lease
	for name, first := range map[string]map[string]any{
		"gateway": {}, "no gateway": {"delegate": map[string]any{"isGateway": false}},
		"another plugin's": reference(map[string]any{"delegate": map[string]any{"isGateway": false}}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, red)
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: first}
			h.mustAdd(t, r)
			h.write(t, blue)
			second := request{id: "c2", ifName: "eth0", netns: h.addNamespace(t, "c2")}
			before := state(t, h.ns, r.netns, second.netns)
			for _, native := range []bool{true, false} {
				if second.more = map[string]any{"delegate": map[string]any{"isGateway": false}}; !native {
					second.more = reference(second.more)
				}
				_, _, err := h.add(second)
				if err == nil || !strings.Contains(err.Error(), "cni0: ") || !strings.Contains(err.Error(), "network") {
					t.Errorf("%v", err)
				}
				if diff := cmp.Diff(before, state(t, h.ns, r.netns, second.netns)); diff != "" {
					t.Errorf("a refused ADD changed something (-before +after):\n%s", diff)
				}
			}
			h.mustCall(t, second.del())
			second.more = map[string]any{"network": "blue"}
			h.mustAdd(t, second)
			if shown := ip(t, h.ns, "-4", "addr", "show", "ov-blue"); !strings.Contains(shown, "10.5.72.1/24") {
				t.Errorf("the bridge of the network is %s", shown)
			}
			h.mustCall(t, second.del())
			h.mustCall(t, r.del())
			h.wantClean(t)
		})
	}
}

// An interface that is there already is somebody else's: neither the ADD that fails for it nor the DEL after it takes it.
func TestInterfaceOfAnother(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	inTheWay := map[string]func(r request){
		"of two in the container": func(r request) { ip(t, r.netns, "link", "add", "eth0", "up", "type", "veth", "peer", "x") },
		"no veth":                 func(r request) { ip(t, r.netns, "link", "add", "eth0", "up", "type", "bridge") },
		"of the same bridge, by another's hand": func(r request) {
			ip(t, h.ns, "link", "add", "theirs", "master", "cni0", "up", "type", "veth", "peer", "eth0", "netns", filepath.Base(r.netns))
		},
		"of another network of ours": func(r request) {
			r.more = map[string]any{"name": h.network + "-2"}
			h.mustAdd(t, r)
		},
	}
	h.mustAdd(t, request{id: "first", ifName: "eth0", netns: h.addNamespace(t, "first")}) // makes the bridge
	for name, prepare := range inTheWay {
		r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, strings.ReplaceAll(name, " ", "-"))}
		prepare(r)
		look := func() string { return state(t, h.ns, r.netns) }
		before, held := look(), h.reserved(t)
		for _, r.more = range []map[string]any{nil, reference(nil)} {
			_, _, err := h.add(r)
			if err == nil || !strings.Contains(err.Error(), "eth0") {
				t.Errorf("%s: %v", name, err)
			}
			if diff := cmp.Diff(before, look()); diff != "" {
				t.Errorf("%s: ADD (-before +after):\n%s", name, diff)
			}
			h.mustCall(t, r.del())
			if diff := cmp.Diff(before, look()) + cmp.Diff(held, h.reserved(t)); diff != "" {
				t.Errorf("%s: ADD and DEL (-before +after):\n%s", name, diff)
			}
		}
	}
}

// The host's own namespace is refused by whatever name, also where nothing is known of the attachment but what the
// runtime says.
func TestHostNamespaceByAnyName(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	ip(t, h.ns, "link", "add", "eth0", "type", "veth", "peer", "underlay")
	link := filepath.Join(h.dir, "link")
	if err := os.Symlink(h.ns, link); err != nil {
		t.Fatal(err)
	}
	paths := []string{h.ns, link, "/proc/self/ns/net", "/proc/thread-self/ns/net"}
	if _, err := os.Stat("/proc/1/ns/net"); err == nil { // sandboxes have it closed
		paths = append(paths, "/proc/1/ns/net")
	}
	for _, path := range paths {
		r := request{id: "c1", ifName: "eth0", netns: path}
		_, _, err := h.add(r)
		wantError(t, err, types.ErrInvalidNetNS, "is the host's own network namespace")
		file := filepath.Join(h.dir, "state", h.network, "c1:eth0.json")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, more := range []map[string]any{nil, reference(nil)} {
			r.more = more
			_, _ = h.call(r.del()) // CNI's skeleton fails it, after all is done
			ip(t, h.ns, "link", "show", "eth0")
		}
	}
}
