package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDryRun prints what would be done on a host, and touches nothing; a shell can do what it says.
func TestDryRun(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	hosts[1].Start()
	hosts[1].WaitReady()
	before, keys := hosts[0].Dump(), len(lab.Keys("/"))
	out, code := hosts[0].Once("--dry-run", "--ip-masq")
	if code != 0 {
		t.Fatalf("--dry-run exits with %d:\n%s", code, out)
	}
	sameDump(t, hosts[0].Node, before)
	if n := len(lab.Keys("/")); n != keys {
		t.Errorf("%d keys in etcd after a dry run, want %d", n, keys)
	}
	for _, dir := range []string{hosts[0].RunDir, hosts[0].State} {
		if files := filesUnder(t, dir); len(files) != 0 {
			t.Errorf("a dry run leaves %q in %s", files, dir)
		}
	}
	for _, want := range []string{"ip link add overlay.1 ", " type vxlan id 1 ", "overlay6.1", "bridge fdb", "ip neigh", "ip route",
		"masquerade", "net.ipv4.ip_forward", networkOf(envValue(t, hosts[1], "FLANNEL_SUBNET"))} {
		if !strings.Contains(out, want) {
			t.Errorf("--dry-run does not say %q:\n%s", want, out)
		}
	}
	// A host that has been there would be what it was.
	hosts[0].Start("--ip-masq")
	hosts[0].WaitPeers(1)
	hosts[0].WaitReady() // the rules too
	whole := commanded(hosts[0])
	hosts[0].Daemon.Stop(syscall.SIGTERM)
	hosts[0].Once("--cleanup")
	out, _ = hosts[0].Once("--dry-run", "--ip-masq")
	hosts[0].Exec("sh", "-ec", out)
	if diff := cmp.Diff(whole, commanded(hosts[0])); diff != "" {
		t.Errorf("what --dry-run says makes another kernel (-overlayd +dry run):\n%s\n%s", diff, out)
	}
}

// commanded is what overlayd has told a host's kernel, without the comments of nft's rules.
func commanded(h *Host) string {
	h.t.Helper()
	rules := h.Exec("sh", "-c", `nft --stateless list table inet overlayd | sed 's/ comment .*//'; iptables -S; ip6tables -S`)
	return essence(h.Dump()) + rules
}

// TestCleanup leaves the host as it was before overlayd first ran.
func TestCleanup(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true, V6: true}, backend.Config)
			hosts := lab.NewHosts(wire, 2)
			for _, iptables := range []string{"iptables", "ip6tables"} {
				hosts[0].Exec(iptables, "-P", "FORWARD", "DROP") // tables that are not ours
			}
			hosts[0].Exec("ip", "route", "add", "192.0.2.0/24", "via", hosts[1].Addrs[0].String(), "proto", "static")
			before := hosts[0].Dump()
			startAll(t, hosts, "--ip-masq")
			if hosts[0].Dump() == before {
				t.Fatal("overlayd has changed nothing, so the test shows nothing")
			}
			hosts[0].Daemon.Stop(syscall.SIGTERM)
			for again := range 2 { // the second finds nothing, which is no error
				out, code := hosts[0].Once("--cleanup")
				if code != 0 {
					t.Fatalf("--cleanup exits with %d:\n%s", code, out)
				}
				if removed := strings.Contains(out, "removed "); removed == (again == 1) {
					t.Errorf("--cleanup number %d says\n%s", again+1, out)
				}
				sameDump(t, hosts[0].Node, before)
			}
			if _, err := os.Stat(hosts[0].SubnetFile()); !os.IsNotExist(err) {
				t.Errorf("subnet.env is there after --cleanup (%v), want it gone", err)
			}
		})
	}
}

// TestLeasesList compares overlayctl's list with what is known of the hosts.
func TestLeasesList(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	var list []struct {
		Host, HostID, Backend string
		Subnets               []netip.Prefix
		PublicIPs             []netip.Addr
		Reserved              *bool
		Expires               *time.Time
	}
	out := hosts[1].Overlayctl("leases", "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if len(list) != len(hosts) {
		t.Fatalf("%d leases, want %d:\n%s", len(list), len(hosts), out)
	}
	byIP := make(map[netip.Addr]int)
	for i, l := range list {
		if len(l.PublicIPs) != 2 || len(l.Subnets) != 2 || l.HostID == "" ||
			l.Backend != "vxlan" || l.Reserved == nil || *l.Reserved || l.Expires == nil || l.Expires.Before(time.Now()) {
			t.Errorf("lease %d is not complete:\n%s", i, out)
			continue
		}
		byIP[l.PublicIPs[0]] = i
	}
	for _, h := range hosts {
		i, ok := byIP[h.Addrs[0]]
		if !ok {
			t.Errorf("no lease of %s:\n%s", h.Addrs[0], out)
			continue
		}
		if list[i].Host != h.Name {
			t.Errorf("lease of %s has the host name %s", h.Name, list[i].Host)
		}
		if want := networkOf(envValue(t, h, "FLANNEL_SUBNET")); list[i].Subnets[0].String() != want {
			t.Errorf("lease of %s is %s, want %s", h.Name, list[i].Subnets[0], want)
		}
	}
	table := hosts[0].Overlayctl("leases", "list")
	for _, h := range hosts {
		if !strings.Contains(table, h.Addrs[0].String()) {
			t.Errorf("the table does not name %s:\n%s", h.Addrs[0], table)
		}
	}
	status := hosts[0].Overlayctl("status", "--run-dir", hosts[0].RunDir)
	if !strings.Contains(status, hosts[0].Name) {
		t.Errorf("status does not name the host %s:\n%s", hosts[0].Name, status)
	}
}

// TestHealed removes what overlayd has programmed, and waits for it to be there again.
func TestHealed(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
	vtep := strings.Fields(hosts[0].Exec("ip", "-4", "neighbour", "show", "dev", "overlay.1", "nud", "permanent"))[0]
	route := networkOf(envValue(t, hosts[1], "FLANNEL_SUBNET"))
	for _, harm := range [][]string{
		{"ip", "route", "delete", route},
		{"ip", "neighbour", "delete", vtep, "dev", "overlay.1"},
		{"ip", "link", "set", "overlay.1", "down"},
		{"ip", "link", "delete", "overlay.1"},
		{"ip", "link", "delete", "overlay6.1"},
		{"sh", "-c", "bridge fdb show dev overlay.1 | while read -r mac rest; do bridge fdb delete $mac dev overlay.1; done"},
		{"nft", "delete", "table", "inet", "overlayd"},
	} {
		whole := hosts[0].Dump()
		hosts[0].Exec(harm...)
		eventually(t, strings.Join(harm, " ")+" is healed", func() error {
			if !strings.Contains(hosts[0].Exec("nft", "list", "tables"), "overlayd") {
				return fmt.Errorf("no table overlayd")
			}
			return pingAll(a, b)
		})
		eventually(t, "all of it", func() error {
			if got, want := essence(hosts[0].Dump()), essence(whole); got != want {
				return fmt.Errorf("have\n%s\nwant\n%s", got, want)
			}
			return nil
		})
	}
}

func pingAll(from, to *Container) error {
	for _, dst := range to.Addrs {
		if err := from.PingSize(dst, 100); err != nil {
			return err
		}
	}
	return nil
}

// essence is a dump's routes, neighbours and FDB entries of the overlay's links, without link numbers.
func essence(dump string) string {
	var kept []string
	for line := range strings.Lines(dump) {
		if strings.Contains(line, " dev overlay") && !strings.Contains(line, "fe80::") &&
			!strings.Contains(line, "ff00::") {
			kept = append(kept, line)
		}
	}
	slices.Sort(kept) // the kernel's order is that of making
	return strings.Join(kept, "")
}
