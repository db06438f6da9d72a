package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// reference makes the plugin run the reference plugins where it would do their work itself.
func reference(more map[string]any) map[string]any {
	delegate := map[string]any{"type": "bridge"}
	given, ok := more["delegate"].(map[string]any)
	if !ok {
		given = map[string]any{"hairpinMode": true, "isDefaultGateway": true}
	}
	for key, value := range given {
		delegate[key] = value
	}
	all := map[string]any{}
	for key, value := range more {
		all[key] = value
	}
	all["delegate"] = delegate
	return all
}

// What the plugin does itself is what the reference plugins do, to the byte but for what is random; and where the network has no
// IPv6 its containers have no link-local address.
func TestLikeTheReferencePlugins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, lease, args string
		more              map[string]any
	}{
		{name: "IPv4", lease: v4Lease},
		{name: "IPv6", lease: v6Lease},
		{name: "dual stack", lease: dualLease},
		{name: "no default route, no hairpin", lease: dualLease, more: map[string]any{"delegate": map[string]any{}}},
		{name: "no gateway", lease: dualLease, more: map[string]any{"delegate": map[string]any{"isGateway": false}}},
		{name: "other bridge and MTU", lease: v4Lease, more: map[string]any{"delegate": map[string]any{"bridge": "br7", "mtu": 1280}}},
		{name: "DNS, and what the runtime asks for", lease: dualLease, args: "IP=10.5.72.9;IgnoreUnknown=1", more: map[string]any{
			"dns": map[string]any{"nameservers": []string{"10.5.0.53"}, "search": []string{"overlay"}},
			"runtimeConfig": map[string]any{
				"mac": "02:aa:00:00:00:01", "ips": []string{"fc00:7:0:4c::9", "10.5.72.9"},
				"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
			},
		}},
		{name: "older CNI", lease: v4Lease, more: map[string]any{"cniVersion": "0.3.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var views []view
			for _, more := range []map[string]any{reference(tt.more), tt.more} {
				h := newHost(t, tt.lease)
				r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), args: tt.args, more: more}
				_, result := h.mustAdd(t, r)
				views = append(views, h.look(t, r, result))
				h.mustCall(t, r.del())
				h.wantClean(t)
			}
			if tt.lease == v4Lease {
				views[0].withoutLinkLocal()
			}
			if diff := cmp.Diff(views[0], views[1]); diff != "" {
				t.Errorf("(-reference plugins +this one):\n%s", diff)
			}
		})
	}
}

// Each checks and undoes what the other has done: after an upgrade, or when the delegate is named.
func TestLikeTheReferencePluginsAfterwards(t *testing.T) {
	t.Parallel()
	for _, native := range []bool{true, false} {
		h := newHost(t, dualLease)
		r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
		if !native {
			r.more = reference(nil)
		}
		_, result := h.mustAdd(t, r)
		h.swap(t, native)
		check := r
		check.command, check.more = "CHECK", map[string]any{"prevResult": result}
		h.mustCall(t, check)
		h.mustCall(t, r.del())
		h.wantClean(t)
	}
}

// swap lets the other one undo the attachment.
func (h *host) swap(t *testing.T, native bool) {
	t.Helper()
	path := filepath.Join(h.dir, "state", h.network, "c1:eth0.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	if was, _ := state["inProcess"].(bool); was != native {
		t.Fatalf("inProcess is %v, want %v", was, native)
	}
	state["inProcess"] = !native
	if data, err = json.Marshal(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// view is all that can be seen of an attachment, but for what is random.
type view struct {
	Result          any
	Container, Host []link
	ContainerRoutes []string
	HostRoutes      []string
	Sysctls         map[string]string
	Reservations    map[string]string
}

// withoutLinkLocal takes the container's link-local address out of the view.
func (v *view) withoutLinkLocal() {
	for i := range v.Container {
		v.Container[i].Addrs = slices.DeleteFunc(v.Container[i].Addrs, func(a address) bool { return a.Scope == "link" })
	}
	v.ContainerRoutes = slices.DeleteFunc(v.ContainerRoutes, func(r string) bool { return strings.Contains(r, "fe80::") })
}

type link struct {
	Name              string `json:"ifname"`
	Master, OperState string
	Flags             []string
	MTU, TxQLen       int
	LinkInfo          struct {
		Kind      string         `json:"info_kind"`
		SlaveData map[string]any `json:"info_slave_data"`
	}
	Addrs []address `json:"addr_info"`
}

type address struct {
	Family, Local, Scope string
	PrefixLen            int
}

func (h *host) look(t *testing.T, r request, result json.RawMessage) view {
	t.Helper()
	for range 500 { // where the kernel looks for others with the same address (DAD) it shows no route to it meanwhile
		shown := ip(t, h.ns, "addr") + ip(t, h.ns, "link", "show", "type", "bridge")
		if !strings.Contains(shown, "tentative") && strings.Count(shown, "state UNKNOWN") < 2 { // that is lo's alone
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	v := view{
		Container: links(t, r.netns), Host: links(t, h.ns),
		ContainerRoutes: routes(t, r.netns), HostRoutes: routes(t, h.ns),
		Reservations: map[string]string{},
	}
	if err := json.Unmarshal([]byte(blur(string(result))), &v.Result); err != nil {
		t.Fatal(err)
	}
	inside := mustRun(t, "nsenter", "--net="+r.netns, "sh", "-c", `cd /proc/sys/net && grep -s . ipv4/conf/eth0/arp_notify `+
		`ipv6/conf/lo/disable_ipv6 ipv6/conf/eth0/accept_dad ipv6/conf/eth0/disable_ipv6 ipv6/conf/eth0/keep_addr_on_down`)
	v.Sysctls = map[string]string{"container": inside}
	v.Sysctls["host"] = blur(mustRun(t, "nsenter", "--net="+h.ns, "sh", "-c",
		`cd /proc/sys/net && grep -s . ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/*/accept_ra`))
	for _, name := range filesBelow(t, filepath.Join(h.dir, "ipam")) {
		data, err := os.ReadFile(filepath.Join(h.dir, "ipam", name))
		if err != nil {
			t.Fatal(err)
		}
		v.Reservations[filepath.Base(name)] = string(data)
	}
	return v
}

func links(t *testing.T, ns string) []link {
	t.Helper()
	var all []link
	if err := json.Unmarshal([]byte(blur(ip(t, ns, "-j", "-d", "addr"))), &all); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all, func(a, b link) int { return strings.Compare(a.Name, b.Name) })
	for i := range all {
		slices.Sort(all[i].Flags)
		for _, random := range []string{"id", "no", "designated_port", "designated_bridge", "root_id", "message_age_timer", "forward_delay_timer", "hold_timer"} {
			delete(all[i].LinkInfo.SlaveData, random)
		}
	}
	return all
}

func routes(t *testing.T, ns string) []string {
	t.Helper()
	var all []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(blur(ip(t, ns, family, "route", "show", "table", "all"))) {
			all = append(all, strings.TrimSpace(line))
		}
	}
	slices.Sort(all)
	return all
}

// blur replaces what is random by what is not.
func blur(text string) string {
	for _, r := range []struct{ pattern, with string }{
		{`o?veth[0-9a-f]{8}`, "vethX"},
		{`fe80::[0-9a-f:]+`, "fe80::X"},
		{`\b0:0:0:0:0:0\b`, "none"},
		{`\b([0-9a-f]{1,2}:){5}[0-9a-f]{1,2}\b`, "MAC"},
		{`/run/netns/\w[-\w]*`, "NETNS"},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.with)
	}
	return text
}
