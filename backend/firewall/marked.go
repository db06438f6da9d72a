package firewall

import "fmt"

// Marked has no packet of a mark go by some links: wireguard's own, whose way to a peer's host would lead into the tunnel.
type Marked struct {
	Mark  uint32
	Links string // in quotes, with ", " between them
}

func (Marked) place() string    { return "inet" }
func (m Marked) String() string { return shell(m.nft()) }

// nft implements ruled.
func (m Marked) nft() []string {
	return []string{
		"add chain inet overlayd tunnelled { type filter hook output priority 0; }",
		fmt.Sprintf("add rule inet overlayd tunnelled meta mark %#x oifname { %s } drop", m.Mark, m.Links),
	}
}
