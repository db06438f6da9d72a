package kernel

import (
	"fmt"
	"net/netip"
)

// IPIP is an ipip link, for protocol 4 or, with a Port, for flannel's udp by FOU. Keyed by Name.
type IPIP struct {
	Name       string
	Local      netip.Addr
	MTU        int
	Port       uint16 // UDP, of FOU; 0: protocol 4
	Unfinished bool   // inner checksums may travel unfinished: the link's transmit offload stays on
}

// Key implements Object.
func (i IPIP) Key() Key { return linkKey(i.Name) }

// Kind implements Object.
func (IPIP) Kind() Kind { return KindLink }

func (i IPIP) String() string {
	return fmt.Sprintf("ip link add %s up mtu %d type ipip local %s ttl inherit nopmtudisc", i.Name, i.MTU, i.Local)
}
