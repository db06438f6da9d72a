package integration

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/policy"
)

// TestContainerdCtr has ctr start containers on two hosts, and finds what ctr leaves behind.
func TestContainerdCtr(t *testing.T) {
	t.Parallel()
	_, hosts := newContainerds(t)
	for _, h := range hosts {
		h.InstallConflist(shippedConflist(t, "1.0.0"))
	}
	host := hosts[0]
	gone, kept, far := host.CtrRun("gone"), host.CtrRun("kept"), hosts[1].CtrRun("far")
	wantEndpoint(t, host.Box, "default-kept", policy.Identity{Namespace: "default", Name: "kept", Labels: map[string]string{"app": "kept"}})
	for i, dst := range far.Addrs {
		gone.InContainer("ping", "-c", "1", "-W", "10", dst.String())
		far.InContainer("ping", "-c", "1", "-W", "10", gone.Addrs[i].String())
	}

	gone.Destroy()
	// ctr 1.6 never calls DEL: that there is something to collect is what this test rests on.
	if left := host.Left(); host.Is("1.6.") && !slices.Contains(left, "overlay/default-gone:eth0.json") {
		t.Errorf("nothing of the container is left, but only %q", left)
	}
	list := parseConflist(t, shippedConflist(t, "1.1.0"))
	valid := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "default-kept", IfName: "eth0"}}}
	if err := host.libcni().GCNetworkList(t.Context(), list, valid); err != nil {
		t.Fatalf("GC: %v", err)
	}
	for _, a := range gone.Addrs {
		if slices.ContainsFunc(host.Left(), func(f string) bool { return filepath.Base(f) == a.String() }) {
			t.Errorf("%s is still taken after GC", a)
		}
	}
	if left := strings.Join(host.Left(), " "); strings.Contains(left, "default-gone") {
		t.Errorf("left after GC: %s", left)
	}
	for i, dst := range far.Addrs {
		kept.InContainer("ping", "-c", "1", "-W", "10", dst.String())
		far.InContainer("ping", "-c", "1", "-W", "10", kept.Addrs[i].String())
	}
	kept.Destroy()
	if err := host.libcni().GCNetworkList(t.Context(), list, nil); err != nil {
		t.Fatalf("GC: %v", err)
	}
	host.WaitNothingLeft()
}

// TestContainerdCrash loses everything but the disk while containers run, as a reboot does.
func TestContainerdCrash(t *testing.T) {
	t.Parallel()
	_, hosts := newContainerds(t)
	host := hosts[0]
	host.InstallConflist(shippedConflist(t, "1.0.0"))
	before := []*CtrContainer{host.CtrRun("one"), host.CtrRun("two")}
	host.Crash()
	host.Boot()

	// Nobody has collected yet: a container must not get an address that might still be somebody's.
	after := host.CtrRun("three")
	for _, old := range before {
		if slices.ContainsFunc(after.Addrs, func(a netip.Addr) bool { return slices.Contains(old.Addrs, a) }) {
			t.Errorf("the new container has %v, the lost one had %v", after.Addrs, old.Addrs)
		}
	}
	list := parseConflist(t, shippedConflist(t, "1.1.0"))
	valid := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "default-three", IfName: "eth0"}}}
	if err := host.libcni().GCNetworkList(t.Context(), list, valid); err != nil {
		t.Fatalf("GC: %v", err)
	}
	for _, file := range host.Left() {
		for _, old := range before {
			if strings.Contains(file, "default-"+old.ID) || filepath.Base(file) == old.Addrs[0].String() {
				t.Errorf("%s is left of a container that is lost", file)
			}
		}
	}
	far := hosts[1].Host
	for _, a := range after.Addrs {
		far.Exec("ping", "-n", "-c", "1", "-W", "10", a.String())
	}
	after.Destroy()
	if err := host.libcni().GCNetworkList(t.Context(), list, nil); err != nil {
		t.Fatalf("GC: %v", err)
	}
	host.WaitNothingLeft()
}

// TestContainerdCRI lives through what happens to pods: the configuration comes late, containerd is restarted and
// killed, and overlayd is away.
func TestContainerdCRI(t *testing.T) {
	t.Parallel()
	_, hosts := newContainerds(t)
	near, far := hosts[0].CRI(), hosts[1].CRI()
	conflist := shippedConflist(t, "1.0.0")
	if hosts[0].Is("2.") {
		conflist = shippedConflist(t, "1.1.0")
	}
	for _, c := range []*CRI{near, far} {
		c.WaitNetworkReady(false, "cni")
		c.c.InstallConflist(conflist)
		c.WaitNetworkReady(true, "")
	}

	a := near.RunPod("a", &cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 80, HostPort: 8080})
	b := far.RunPod("b")
	if len(a.Addrs) != 2 || len(b.Addrs) != 2 {
		t.Fatalf("pods have addresses %v and %v, want one of each family", a.Addrs, b.Addrs)
	}
	pingPods(a, b)
	pingPods(b, a)
	wantPages(t, a, b)
	wantLabels(t, a)

	hosts[0].Shutdown("TERM")
	hosts[1].Shutdown("KILL")
	for _, dst := range a.Addrs {
		hosts[1].Exec("ping", "-n", "-c", "1", "-W", "10", dst.String())
	}
	for _, h := range hosts {
		h.Boot()
	}
	pingPods(a, b)

	hosts[0].Daemon.Stop(syscall.SIGTERM)
	err := hosts[0].libcni().GetStatusNetworkList(t.Context(), parseConflist(t, shippedConflist(t, "1.1.0")))
	if err != nil {
		t.Errorf("STATUS while overlayd is stopped, and pods can be run: %v", err)
	}
	near.WaitNetworkReady(true, "")
	pingPods(a, b)
	pingPods(b, a)
	wantPages(t, a, b)
	late := near.RunPod("late")
	pingPods(b, late)
	late.Destroy()
	a.Destroy()
	hosts[0].WaitNothingLeft()
	wantTwoDELs(t, hosts[0], a)

	hosts[0].Start("--ip-masq")
	hosts[0].WaitReady()
	near.WaitNetworkReady(true, "")
	again := near.RunPod("again")
	pingPods(again, b)
	again.Destroy()
	b.Destroy()
	for _, h := range hosts {
		h.WaitNothingLeft()
	}
}

func pingPods(from, to *Pod) {
	from.t.Helper()
	for _, dst := range to.Addrs {
		from.Exec("ping", "-c", "1", "-W", "10", dst.String())
	}
}

// wantPages gets the pod's page by its own address, and by the mapped port of its host, from another host, from a pod
// there, from the host itself and from the pod itself.
func wantPages(t *testing.T, server, client *Pod) {
	t.Helper()
	var targets []netip.AddrPort
	for i, a := range server.Addrs {
		targets = append(targets, netip.AddrPortFrom(a, 80), netip.AddrPortFrom(server.c.Addrs[i], 8080))
	}
	for _, target := range targets {
		url := "http://" + target.String() + "/"
		if status, body, err := client.c.Get(url); err != nil || status != 200 || body != pageText {
			t.Errorf("%s from the other host: status %d, %v, %q", url, status, err, body)
		}
		if _, body, err := server.c.Get(url); err != nil || body != pageText {
			t.Errorf("%s from its own host: %v, %q", url, err, body)
		}
		// A static busybox's wget crashes where there is no NSS.
		request := `printf 'GET / HTTP/1.0\r\n\r\n' | nc $0 $1`
		for _, from := range []*Pod{client, server} {
			body := from.Exec("sh", "-c", request, target.Addr().String(), strconv.Itoa(int(target.Port())))
			if !strings.HasSuffix(body, pageText) {
				t.Errorf("%s from a pod with %v: %q", url, from.Addrs, body)
			}
		}
	}
	if _, body, err := server.c.Get("http://127.0.0.1:8080/"); err != nil || body != pageText {
		t.Errorf("the mapped port at the host's loopback: %v, %q", err, body)
	}
}

// wantLabels looks for the pod's names in the file of its attachment.
func wantLabels(t *testing.T, p *Pod) {
	t.Helper()
	state, err := os.ReadFile(filepath.Join(p.c.varLib, "cni", "overlay", "overlay", p.ID+":eth0.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"K8S_POD_NAME":"a"`, `"K8S_POD_NAMESPACE":"tests"`, `"K8S_POD_UID":"uid-of-a"`} {
		if !strings.Contains(string(state), want) {
			t.Errorf("the attachment's file has no %s:\n%s", want, state)
		}
	}
	if strings.Contains(string(state), "hush-hush") {
		t.Error("the attachment's file has all annotations of the pod")
	}
	wantEndpoint(t, p.c.Box, p.ID, policy.Identity{
		Namespace: "tests", Name: "a", Labels: map[string]string{"app": "a", "tier": "front"},
		Ports: []policy.NamedPort{{Name: "http", Port: 80, Protocol: policy.TCP}},
	})
}

// wantEndpoint looks for what a container is to policies in the file of its attachment, where nothing was dropped.
func wantEndpoint(t *testing.T, b *Box, cniID string, want policy.Identity) {
	t.Helper()
	all, err := attachment.Read(filepath.Join(b.varLib, "cni", "overlay"), "overlay")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all.Usable {
		if a.ContainerID != cniID {
			continue
		}
		if diff := cmp.Diff(&want, a.Endpoint); diff != "" || len(a.EndpointNotes) > 0 {
			t.Errorf("%s is to policies (-want +got):\n%s%q", cniID, diff, a.EndpointNotes)
		}
		return
	}
	t.Errorf("no record of %s", cniID)
}

// wantTwoDELs looks for the two DELs of a pod, with and without its namespace: the second is what a plugin that
// insists on CNI_NETNS would fail.
func wantTwoDELs(t *testing.T, c *Containerd, p *Pod) {
	t.Helper()
	var dels []string
	for _, call := range c.Calls() {
		if strings.HasPrefix(call, "DEL id="+p.ID) {
			dels = append(dels, call)
		}
	}
	if len(dels) != 2 || !strings.Contains(dels[1], "netns= ") {
		t.Errorf("the plugin's DELs are %q, want two, the second with no namespace", dels)
	}
}

// globalAddrs are the addresses in the output of ip -o address, but for those of a link alone.
func globalAddrs(t testing.TB, text string) []netip.Addr {
	t.Helper()
	var addrs []netip.Addr
	for _, m := range regexp.MustCompile(`inet6? (\S+)/\d+ .*scope global`).FindAllStringSubmatch(text, -1) {
		a, err := netip.ParseAddr(m[1])
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, a)
	}
	return addrs
}
