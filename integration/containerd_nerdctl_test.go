package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/policy"
)

// nerdctl runs nerdctl inside the box; a failure ends the test.
func (c *Containerd) nerdctl(args ...string) string {
	c.t.Helper()
	return strings.TrimSpace(c.Run(append([]string{runtimeProgram("nerdctl"), "--address", c.socket,
		"--snapshotter", "native", "--cgroup-manager", "cgroupfs"}, args...)...))
}

// nerdctlRun starts a container that serves a page, and returns the addresses it got.
func (c *Containerd) nerdctlRun(name string, options ...string) []netip.Addr {
	c.t.Helper()
	args := append([]string{"run", "--detach", "--pull", "never", "--cgroup-parent", "/" + c.cgroup,
		"--net", "overlay", "--name", name}, options...)
	c.nerdctl(append(args, imageName, "httpd", "-f", "-p", "80", "-h", "/www")...)
	return globalAddrs(c.t, c.nerdctl("exec", name, "ip", "-o", "address", "show", "dev", "eth0"))
}

// TestNerdctl has people's commands run containers on two hosts.
func TestNerdctl(t *testing.T) {
	t.Parallel()
	needRuntimes(t)
	_, hosts := newContainerds(t)
	for _, h := range hosts {
		h.InstallConflist(shippedConflist(t, "1.1.0"))
		for _, plugin := range []string{"firewall", "tuning"} { // of nerdctl's default network, which it always makes
			h.Run("ln", "-s", runtimeProgram(plugin), "/opt/cni/bin/")
		}
	}
	wanted4 := hosts[0].addrInLease(77)
	wanted6 := strings.Replace(envValue(t, hosts[0].Host, "FLANNEL_IPV6_SUBNET"), "::1/64", "::77", 1)
	web := hosts[0].nerdctlRun("web", "--label", "app=web", "--label", "tier=front", "--publish", "8080:80", "--ip", wanted4, "--ip6", wanted6)
	if fmt.Sprint(web) != fmt.Sprintf("[%s %s]", wanted4, wanted6) {
		t.Errorf("the container has %v, want %s and %s", web, wanted4, wanted6)
	}
	wantEndpoint(t, hosts[0].Box, "default-"+hosts[0].nerdctl("inspect", "--format", "{{.ID}}", "web"), policy.Identity{
		Namespace: "default", Name: "web", Labels: map[string]string{"app": "web", "tier": "front"},
	})
	client := hosts[1].nerdctlRun("client")
	for i := range web {
		hosts[1].nerdctl("exec", "client", "ping", "-c", "1", "-W", "10", web[i].String())
		hosts[0].nerdctl("exec", "web", "ping", "-c", "1", "-W", "10", client[i].String())
	}
	if out := hosts[0].nerdctl("ps"); !strings.Contains(out, "8080->80/tcp") {
		t.Errorf("nerdctl ps shows\n%s", out)
	}
	mapped := "http://" + netip.AddrPortFrom(hosts[0].Addrs[0], 8080).String()
	if _, body, err := hosts[1].Get(mapped); err != nil || body != pageText {
		t.Errorf("%s from the other host: %v, %q", mapped, err, body)
	}

	hosts[0].nerdctl("restart", "--time", "0", "web")
	hosts[1].nerdctl("exec", "client", "ping", "-c", "1", "-W", "10", wanted4)
	hosts[0].nerdctl("rm", "--force", "web")
	hosts[1].nerdctl("rm", "--force", "client")
	for _, h := range hosts {
		h.WaitNothingLeft()
	}
}
