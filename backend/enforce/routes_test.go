package enforce

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/policy/compile"
)

// unseenEnv is set where the kernel is to be as one without br_netfilter.
const unseenEnv = "OVERLAYD_NO_BR_NETFILTER"

// TestWithoutBridgeNetfilter has what packets do be the same on a kernel that shows no bridge's traffic to nftables. One that has
// br_netfilter built in, or loaded, hides it from these.
func TestWithoutBridgeNetfilter(t *testing.T) {
	t.Parallel()
	if os.Getenv(unseenEnv) != "" {
		return
	}
	tests := "^Test(Routed|Ingress|Egress|PublishedPorts|Fragments|ICMPErrors|Pending|Flush|Restart|CutUntracked)$"
	cmd := exec.Command("unshare", "--mount", os.Args[0], "-test.v", "-test.parallel=2", "-test.run", tests)
	cmd.Env = append(os.Environ(), unseenEnv+"=1")
	out, err := cmd.CombinedOutput()
	passed := strings.Count(string(out), "\n--- PASS")
	if err != nil || passed < 8 {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%d tests passed", passed)
}

// TestRouted has containers that have known each other for long lose nothing when it begins that their host routes what they send
// each other, and when it ends; and is gone then.
func TestRouted(t *testing.T) {
	if os.Getenv(unseenEnv) == "" {
		return // of TestWithoutBridgeNetfilter
	}
	t.Parallel()
	s := newSite(t)
	table := newTable(t, s.host)
	if err := table.Rebuild(t.Context(), compile.Change{}, Options{Unready: Closed}); err != nil {
		t.Fatal(err)
	}
	hop := func() string { return nstest.Sh(t, s.b, "ping -c1 -W1 10.5.1.2; ping -c1 -W1 fd00:5:0:1::2") }
	if out := hop(); strings.Count(out, "ttl=64") != 2 {
		t.Errorf("before: %s", out)
	}
	lost := make(chan string)
	for _, to := range []netip.Addr{a4, a6} {
		go func() { lost <- nstest.Sh(t, s.b, "ping -q -i 0.002 -c 1000 -W 1 "+to.String()) }()
	}
	time.Sleep(300 * time.Millisecond)
	for _, on := range []bool{true, false, true} {
		if shown, err := table.Bridge("br0", on); shown.Routed != on || err != nil {
			t.Fatal(shown, err)
		}
		time.Sleep(200 * time.Millisecond)
		if out := hop(); on != (strings.Count(out, "ttl=63") == 2) {
			t.Errorf("on is %t: %s", on, out)
		}
	}
	nstest.Sh(t, s.b, "ip neigh flush all; ip -6 neigh flush all")
	for range 2 {
		if out := <-lost; !strings.Contains(out, " 0% packet loss") {
			t.Error(out)
		}
	}
	// Who sends to all reaches no other container, and nobody is told of a way that is closed.
	listing := nstest.Sh(t, s.host, "nft list table bridge overlayd_policy")
	nft := exec.Command("nft", "-c", "-f", "-")
	nft.Stdin = strings.NewReader(strings.NewReplacer(`"ca"`, "1", `"cb"`, "2").Replace(listing))
	if out, err := nft.CombinedOutput(); err != nil {
		t.Errorf("nft does not read what it lists: %s\n%s", out, listing)
	}
	if out := nstest.Sh(t, s.b, "ping -c1 -W1 10.5.1.2"); strings.Contains(out, "Redirect") {
		t.Error(out)
	}
	nstest.Sh(t, s.a, "sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0")
	neighbour := strings.Fields(nstest.Sh(t, s.a, "ip -6 -o addr show dev eth0 scope link"))[3]
	for from, to := range map[string]string{"10.5.1.2:": "-b 10.5.1.255", strings.TrimSuffix(neighbour, "/64") + "%eth0:": "ff02::1%eth0"} {
		if out := nstest.Sh(t, s.b, "ping -c2 -i 0.2 -W1 "+to+" 2>&1 || true"); strings.Contains(out, from) {
			t.Errorf("%s to all: %s", from, out)
		}
	}
	if err := table.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := nstest.Sh(t, s.host, "nft list tables") + hop(); strings.Contains(out, "overlayd") || strings.Count(out, "ttl=64") != 2 {
		t.Errorf("left: %s", out)
	}
}
