package fastpath

import (
	"bytes"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// Containers that have a tunnel of their own between them: its packets come as by the slow way, with no hop more.
func TestNested(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, false, true)
	for _, s := range []*site{a, b} {
		s.run(t)
	}
	nstest.Sh(t, a.inside, "ip link add v mtu 1380 type vxlan id 7 local 10.1.1.5 remote 10.1.2.5 dstport 4789; ip link set v up; ip address add 10.7.0.1/24 dev v")
	nstest.Sh(t, b.inside, "ip link add v mtu 1380 type vxlan id 7 local 10.1.2.5 remote 10.1.1.5 dstport 4789; ip link set v up; ip address add 10.7.0.2/24 dev v")
	at := newTap(t, b.inside, "eth0")
	transfer(t, a.inside, b.inside, addr("10.7.0.2"), 4<<20)
	transfer(t, b.inside, a.inside, addr("10.7.0.1"), 4<<20)
	for _, f := range at.drain() {
		if ip := f.data[14:]; f.data[12] == 8 && f.data[13] == 0 && ip[9] == protoUDP && ip[8] != 62 {
			t.Fatalf("a packet comes with TTL %d, want 62 (%v)", ip[8], a.packets())
		}
	}
	t.Log(a.packets(), b.packets())
}

// A container that passes on what it gets, to another host: what came fast leaves whole.
func TestContainerForwards(t *testing.T) {
	for name, offloads := range wires {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newRig(t, false, true)
			for _, s := range []*site{a, b} {
				nstest.Sh(t, s.ns, "true; "+offloads)
				s.run(t)
			}
			nstest.Sh(t, b.inside, `sysctl -qw net.ipv4.ip_forward=1
nft -f - <<'NFT'
table ip turn {
	chain in { type nat hook prerouting priority -100; tcp dport 7000 dnat to 10.1.1.5; }
	chain out { type nat hook postrouting priority 100; masquerade; }
}
NFT`)
			at := newTap(t, a.inside, "eth0")
			l := listenAt(t, a.inside, addr("10.1.1.5"), 7000)
			echo(l)
			exchange(t, dial(t, a.inside, "tcp", "10.1.2.5:7000"), 4<<20)
			for _, f := range at.drain() {
				ip := f.data[14:]
				if f.data[12] == 8 && f.data[13] == 0 && ip[9] == protoTCP && bytes.Equal(ip[12:16], []byte{10, 1, 2, 5}) && ip[8] != 59 && ip[8] != 62 {
					t.Fatalf("a packet comes with TTL %d, want 59 or 62 (%v)", ip[8], b.packets())
				}
			}
			t.Log(a.packets(), b.packets())
		})
	}
}

// What UDP sends in one piece for the card to cut comes in the pieces that it is to be.
func TestDatagramSegments(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, false, true)
	segments(t, a, b, "IPv4", 1200, 20, 5*time.Second)
	for _, s := range []*site{a, b} {
		s.run(t)
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		segments(t, a, b, family, 1200, 20, 5*time.Second)
	}
	if got := a.packets(); got["sent"] < 10 {
		t.Errorf("not fast: %v", got)
	}
}
