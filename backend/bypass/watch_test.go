package bypass

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// TestTracked finds what has connections tracked, without a rule of ours.
func TestTracked(t *testing.T) {
	t.Parallel()
	for _, rule := range []string{
		"nft add table ip x; nft add chain ip x c; nft add rule ip x c ct state new accept",
		"nft add table ip x; nft add chain ip x c '{ type nat hook postrouting priority 100; }'; nft add rule ip x c masquerade",
		"iptables-nft -A FORWARD -m conntrack --ctstate NEW -j ACCEPT",
		"iptables-nft -t nat -A POSTROUTING -j MASQUERADE",
		"iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.6.1.1",
		"iptables-legacy -t nat -A POSTROUTING -j MASQUERADE",
		"iptables-legacy -A INPUT -m conntrack --ctstate NEW -j ACCEPT",
	} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			w := watch(t, 200*time.Millisecond)
			w.wait("", "")
			if w.Report().Tracked {
				t.Error("connections are tracked where nothing is")
			}
			nstest.Sh(t, w.ns, rule)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for !w.Report().Tracked {
				if !sleep(ctx, 10*time.Millisecond) {
					t.Fatal("not noticed")
				}
			}
		})
	}
}

// TestContainers has containers come and go.
func TestContainers(t *testing.T) {
	t.Parallel()
	w := watch(t, time.Hour)
	w.wait("", "")
	nstest.Sh(t, w.ns, `
		ip link add oveth1 type veth peer name inside1
		ip link set oveth1 up
		iptables-nft -A FORWARD -i oveth1 -j DROP
		tc qdisc add dev oveth1 root tbf rate 10mbit burst 10k latency 50ms`)
	o := host
	second := indexOf(t, w.ns, "oveth1")
	o.Containers = []int{w.container, second}
	w.Watch(o)
	if why := w.Report().Links[second]; why == "" {
		t.Error("a link that nobody looked at is free")
	}
	w.wait("iptables filter FORWARD: '-i oveth1 -j DROP'", "")
	if why := w.Report().Links[second]; !strings.Contains(why, "tbf") {
		t.Errorf("the second link: %q", why)
	}
	o.Containers = []int{w.container}
	w.Watch(o)
	if why, ok := w.Report().Links[second]; ok {
		t.Errorf("of a container that is gone it is said: %s", why)
	}
	o.Containers = []int{w.container, 4711}
	w.Watch(o)
	for w.Report().Links[4711] != "the link is gone" {
		time.Sleep(10 * time.Millisecond)
	}
	o.Tunnels = []netip.AddrPort{}
	w.Watch(o)
}

// TestUnreadable has rules that no command reads.
func TestUnreadable(t *testing.T) {
	w := watch(t, time.Hour)
	w.wait("", "")
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	// It runs with a path of its own.
	nstest.Sh(t, w.ns, "export PATH="+path+"; nft add table inet fw; nft add chain inet fw f '{ type filter hook forward priority 0; }'; nft add rule inet fw f tcp dport 22 counter accept")
	w.wait("not known what would be passed by: nft inet fw has rules that cannot be read: nft: exec: ", "")
	t.Setenv("PATH", path)
	w.wait("", "")
}
