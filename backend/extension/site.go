package extension

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/subnet"
)

// Site is where commands are run: a network, and a host in it. The zero Site has no commands.
type Site struct {
	Commands
	Network []netip.Prefix // its ranges
	Own     subnet.Lease   // the host's
}

// Equal says whether commands would see no difference.
func (s Site) Equal(o Site) bool {
	return s.Commands == o.Commands && slices.Equal(s.Network, o.Network) && s.Own.Equal(o.Own)
}

// vars are the variables that flannel gives PostStartupCommand, and IPV6NETWORK.
func (s Site) vars() (vars []string) {
	for _, p := range s.Network {
		vars = append(vars, variable("NETWORK", p.Addr(), p.String()))
	}
	return append(vars, hostVars(s.Own)...)
}

// hostVars are those of flannel's that tell of one host.
func hostVars(l subnet.Lease) (vars []string) {
	for _, e := range l.Endpoints {
		vars = append(vars, variable("SUBNET", e.Subnet.Addr(), e.Subnet.String()))
		if e.PublicIP.IsValid() {
			vars = append(vars, publicIP(e.PublicIP))
		}
	}
	return vars
}

func publicIP(ip netip.Addr) string {
	if ip.Is4() {
		return "PUBLIC_IP=" + ip.String()
	}
	return "PUBLIC_IPV6=" + ip.String()
}

func variable(name string, family netip.Addr, value string) string {
	if family.Is6() {
		name = "IPV6" + name
	}
	return name + "=" + value
}

// Lease is what SyncCommand hears of a host.
type Lease struct {
	Host      string          `json:"host"`
	HostID    string          `json:"hostID"`
	Subnets   []netip.Prefix  `json:"subnets"`
	PublicIPs []netip.Addr    `json:"publicIPs"`
	Backend   string          `json:"backend"`
	Data      json.RawMessage `json:"data,omitempty"` // what its PreStartupCommand printed, a string; of other backends their own
}

// Leases is what SyncCommand reads, as JSON: all there are.
type Leases struct {
	Network []netip.Prefix `json:"network"`
	Own     Lease          `json:"own"`
	Peers   []Lease        `json:"peers"`
}

func newLease(l subnet.Lease) Lease {
	n := Lease{Host: l.Host, HostID: l.HostID, Subnets: l.Subnets(), PublicIPs: []netip.Addr{}, Backend: l.Backend}
	for _, e := range l.Endpoints {
		if e.PublicIP.IsValid() {
			n.PublicIPs = append(n.PublicIPs, e.PublicIP)
		}
		if n.Data == nil {
			n.Data = e.Data
		}
	}
	return n
}

// heard is what SubnetAddCommand and SubnetRemoveCommand read: what the peer's PreStartupCommand printed, and a newline.
func heard(l subnet.Lease) []byte {
	var text string
	for _, e := range l.Endpoints {
		if json.Unmarshal(e.Data, &text) == nil {
			break
		}
	}
	return []byte(text + "\n")
}

// Leave runs ShutdownCommand, for a host that leaves the network and has no Runner. Root runs it as another user, with what
// the daemon's unit allows that: what the command is, comes from a file of that user's.
func Leave(ctx context.Context, s Site, as *syscall.Credential) error {
	if s.Shutdown == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := (run{text: s.Shutdown, vars: s.vars(), as: as}).do(ctx); err != nil {
		return fmt.Errorf("ShutdownCommand: %w", err)
	}
	return nil
}
