package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNothingLeftOfPeers has peers leave and change in each way there is, seen by a daemon that runs and by one that was
// down meanwhile: of what they were before, nothing is left in the kernel.
func TestNothingLeftOfPeers(t *testing.T) {
	t.Parallel()
	const size = 40
	for _, s := range stacks[:2] {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			c := newCrowd(t, s.Stack, size)
			h := c.host()
			h.Start()
			h.WaitReady()
			for peer, change := range []struct {
				name string
				do   func(key, value string)
				left int // of the peer: neighbours, FDB entries and routes
			}{
				{"leaves", func(key, _ string) { c.Delete(key) }, 0},
				{"has another MAC", func(key, value string) { c.Put(key, strings.Replace(value, "02:01:", "02:02:", 1)) }, 3},
				{"has another address", func(key, value string) {
					c.Put(key, strings.NewReplacer("198.18.0.", "198.18.7.", "2001:db8:1::", "2001:db8:7::").Replace(value))
				}, 3},
				{"has another backend", func(key, value string) {
					near := c.wire.Addrs(200)[0].Addr().String() // host-gw needs one that is near
					c.Put(key, strings.NewReplacer(`"vxlan"`, `"host-gw"`, value[strings.Index(value, `"198`)+1:][:len("198.18.0.9")], near).Replace(value))
				}, 1},
			} {
				if change.left == 1 && s.V6 {
					continue // the value's form is that of IPv4
				}
				for _, down := range []bool{false, true} {
					i := 2*peer + 1
					if down {
						i++
						h.Daemon.Stop(syscall.SIGKILL)
					}
					key, value := c.lease(i)
					before := h.objectsOf(i)
					if len(before) != 3 {
						t.Fatalf("peer %d has %q", i, before)
					}
					change.do(key, value)
					if down {
						// What the cache remembers is kept for two minutes, in case that it was etcd that lost it.
						if err := os.Remove(filepath.Join(h.State, "leases.jsonl")); err != nil {
							t.Fatal(err)
						}
						h.Start()
						h.WaitReady()
					}
					eventually(t, fmt.Sprintf("peer %d, which %s, is followed (daemon down meanwhile: %t)", i, change.name, down), func() error {
						now := h.objectsOf(i)
						if len(now) != change.left || change.left > 0 && strings.Join(now, "") == strings.Join(before, "") {
							return fmt.Errorf("%q, was %q", now, before)
						}
						return nil
					})
				}
			}
			if total := strings.Count(h.Exec("sh", "-c", "ip -4 route show proto 111; ip -6 route show proto 111"), "\n"); total != size-2 {
				t.Errorf("%d routes, want %d", total, size-2)
			}
		})
	}
}

// objectsOf are the lines about peer i of a crowd in what ip and bridge show.
func (h *Host) objectsOf(i int) []string {
	h.t.Helper()
	subnet := fmt.Sprintf("10.0.%d.0", i)
	if h.lab.Stack.V6 {
		subnet = fmt.Sprintf("fc00:0:0:%x::", i)
	}
	var lines []string
	for line := range strings.Lines(h.Exec("sh", "-c", "ip -4 route show proto 111; ip -6 route show proto 111; ip neighbour show nud permanent; bridge fdb show")) {
		mac := fmt.Sprintf(":00:00:00:%02x ", i)
		isFDB := strings.HasPrefix(line, "02:01"+mac) || strings.HasPrefix(line, "02:02"+mac)
		if strings.HasPrefix(line, subnet+"/") || strings.HasPrefix(line, subnet+" ") || isFDB {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestCleanupOfNothing cleans up a host that overlayd never ran on: no etcd is asked, and nothing is made.
func TestCleanupOfNothing(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true})
	h := lab.NewHost(lab.NewSegment(1), 11)
	before := h.Dump()
	for _, args := range [][]string{{"--cleanup"}, {"--cleanup", "--etcd-embedded"}} {
		if out, code := h.Once(args...); code != 0 || out != "" {
			t.Errorf("%q exits with %d:\n%s", args, code, out)
		}
	}
	sameDump(t, h.Node, before)
	memory := filepath.Join(h.State, "policy.json")
	if err := os.WriteFile(memory, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := h.Once("--cleanup"); code != 0 || out != "removed "+memory+"\n" {
		t.Errorf("with policies remembered it exits with %d:\n%s", code, out)
	}
	for _, dir := range []string{h.RunDir, h.State} {
		if files := filesUnder(t, dir); len(files) != 0 {
			t.Errorf("files %q made in %s", files, dir)
		}
	}
}

// TestCleanupOfACrowd leaves the host of a large network as it was, with things of others beside ours that look alike.
func TestCleanupOfACrowd(t *testing.T) {
	t.Parallel()
	for _, s := range stacks[:2] {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			c := newCrowd(t, s.Stack, 2_000)
			h := c.host()
			ip, gateway := h.lab.families()[0], c.wire.Addrs(gatewayNumber)[0].Addr().String()
			subnet := map[bool]string{true: "10.77.0.0/24", false: "fc00:77::/64"}[s.V4]
			h.Exec("sh", "-ec", strings.NewReplacer("IP", ip, "GATEWAY", gateway, "SUBNET", subnet, "LOCAL", h.Addrs[0].String()).Replace(`
				sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=2
				ip IP route add SUBNET via GATEWAY dev eth0 metric 4711
				ip IP route add SUBNET via GATEWAY dev eth0 table 77
				ip IP rule add to SUBNET lookup 77
				ip link add vxlan9 type vxlan id 9 local LOCAL dev eth0 dstport 8472 nolearning
				ip link set vxlan9 up
				bridge fdb add 02:01:00:00:00:09 dev vxlan9 dst GATEWAY self permanent
				nft 'add table inet mine; add chain inet mine c { type filter hook forward priority 0; }; add rule inet mine c accept'
				iptables -A FORWARD -j ACCEPT -m comment --comment mine; ip6tables -A FORWARD -j ACCEPT -m comment --comment mine`))
			before := h.Dump() + h.rules()
			for range 2 {
				h.Start("--ip-masq")
				h.WaitReady()
				h.Daemon.Stop(syscall.SIGTERM)
				if out, code := h.Once("--cleanup"); code != 0 {
					t.Fatalf("--cleanup exits with %d:\n%s", code, out)
				}
				sameSoon(t, h, before)
			}
		})
	}
}
