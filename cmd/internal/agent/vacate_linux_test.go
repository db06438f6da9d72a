package agent

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// TestVacate looks for containers on a real kernel.
func TestVacate(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	lost := []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24"), netip.MustParsePrefix("fd00:7::/64")}
	for name, c := range map[string]struct {
		setup  string // lines of ip(8)
		vacant bool
		left   string // addresses of the link x afterwards
	}{
		"a container on a bridge": {`link add x type bridge
			address add 10.5.7.1/24 dev x
			link add port type veth peer name c
			link set port master x`, false, "10.5.7.1/24"},
		"a container behind a link of its own": {`link add x type veth peer name c
			address add 10.5.7.1/32 dev x`, false, "10.5.7.1/32"},
		"an address over IPv6": {`link add x type veth peer name c
			address add fd00:7::1/64 dev x`, false, "fd00:7::1/64"},
		"nothing": {`link add x type bridge`, true, ""},
		"an empty bridge": {`link add x type bridge
			address add 10.5.7.1/24 dev x
			address add fd00:7::1/64 dev x
			address add 192.0.2.1/24 dev x`, true, "192.0.2.1/24"},
		"other subnets": {`link add x type veth peer name c
			address add 10.5.8.1/24 dev x`, true, "10.5.8.1/24"},
		"the overlay's own link": {`link add x type vxlan id 1 dstport 8472 local 127.0.0.1
			address add 10.5.7.0/32 dev x`, true, "10.5.7.0/32"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			enter(t)
			batch := exec.Command("ip", "-batch", "-")
			batch.Stdin = strings.NewReader(c.setup + "\n")
			if out, err := batch.CombinedOutput(); err != nil {
				t.Fatalf("ip: %v: %s", err, out)
			}
			for range 2 {
				if vacant, err := Vacate(nil, lost); vacant != c.vacant || err != nil {
					t.Errorf("Vacate() = %t, %v, want %t", vacant, err, c.vacant)
				}
			}
			if got := addresses(t, "x"); got != c.left {
				t.Errorf("addresses %q left, want %q", got, c.left)
			}
		})
	}
}

// TestVacateRecorded finds containers whose links leave no address on the host, by what the CNI plugin has recorded.
func TestVacateRecorded(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	enter(t)
	lost := []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24")}
	for name, c := range map[string]struct {
		address     string
		hostIfIndex int
		vacant      bool
	}{
		"macvlan":              {"10.5.7.2/24", 0, false},
		"a veth that is there": {"10.5.7.2/24", 1, false},
		"a veth that is gone":  {"10.5.7.2/24", 4711, true},
		"of another subnet":    {"10.5.8.2/24", 0, true},
	} {
		records := []attachment.Attachment{{HostIfIndex: c.hostIfIndex, Addresses: []netip.Prefix{netip.MustParsePrefix(c.address)}}}
		if vacant, err := Vacate(records, lost); vacant != c.vacant || err != nil {
			t.Errorf("%s: Vacate() = %t, %v, want %t", name, vacant, err, c.vacant)
		}
	}
}

// enter puts the test into a network namespace of its own, which goes away with the test's thread.
func enter(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked, so that nobody else gets the thread
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
}

func addresses(t *testing.T, link string) string {
	t.Helper()
	out, err := exec.Command("ip", "-brief", "address", "show", "dev", link).CombinedOutput()
	if err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	var addrs []string
	for _, f := range strings.Fields(string(out))[2:] {
		if strings.Contains(f, "/") && !strings.HasPrefix(f, "fe80:") {
			addrs = append(addrs, f)
		}
	}
	return strings.Join(addrs, " ")
}
