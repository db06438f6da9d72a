package firewall

import (
	"fmt"
	"net/netip"
)

// Masquerade hides packets from Network behind the host when they leave Network.
type Masquerade struct{ Network netip.Prefix }

func (Masquerade) place() string    { return "inet" }
func (m Masquerade) String() string { return shell(m.nft()) }

// nft implements ruled. The comparisons stand in the order that lets most connections off first: of others, inside the
// network. Source ports are drawn at random, because two CPUs that pick the next free one at once pick the same and the
// kernel drops one of the packets.
func (m Masquerade) nft() []string {
	family, not := "ip", "ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255"
	if m.Network.Addr().Is6() {
		family, not = "ip6", "ip6 daddr != ff00::/8"
	}
	return []string{
		"add chain inet overlayd postrouting { type nat hook postrouting priority srcnat; }",
		fmt.Sprintf("add rule inet overlayd postrouting %[1]s saddr %[2]s %[1]s daddr != %[2]s %[3]s masquerade fully-random", family, m.Network, not),
	}
}
