package backend

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// WireGuardData is flannel's BackendData, and what flannel neither says nor reads.
type WireGuardData struct {
	PublicKey string
	Port      uint16           // UDP; 0: that of the network
	Endpoints []netip.AddrPort `json:",omitempty"` // where the host may be reached besides its public IP
	NAT       bool             `json:",omitzero"`  // the host's public IP is not its own
}

// ReadWireGuard is what the data of an endpoint say of wireguard; what makes no sense says nothing.
func ReadWireGuard(e subnet.Endpoint) (d WireGuardData) {
	if json.Unmarshal(e.Data, &d) != nil {
		return WireGuardData{}
	}
	return d
}

func (b wireguard) Data(f subnet.Family) json.RawMessage {
	port := b.links[f].Port
	d := WireGuardData{PublicKey: b.public.String(), Port: port, NAT: b.behindNAT(f)}
	public := netip.AddrPortFrom(b.host.PublicIPs[f], port)
	all := []netip.AddrPort{public}
	for _, addrs := range []map[subnet.Family]netip.Addr{b.host.PublicIPs, b.host.Addrs} {
		for _, f := range []subnet.Family{subnet.IPv4, subnet.IPv6} {
			if at := netip.AddrPortFrom(addrs[f], port); at.IsValid() && !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	if len(all) > 1 {
		d.Endpoints = all
	}
	data, _ := json.Marshal(d) // strings, a number and addresses: it cannot fail
	return data
}

// behindNAT says whether peers know the host by an address that is not its own.
func (b wireguard) behindNAT(f subnet.Family) bool {
	return b.host.PublicIPs[f].IsValid() && b.host.PublicIPs[f] != b.host.Addrs[f]
}

// oneLink says whether a peer has one link for both families, in a network whose Mode changes: the second link of this host may
// not meet that. Both have the host's one key, and what the peer agrees on with the second takes the place of what it has with
// the first.
func oneLink(peer subnet.Lease) bool {
	if len(peer.Endpoints) < 2 {
		return false
	}
	port := ReadWireGuard(peer.Endpoints[0]).Port // what makes no sense is refused later
	return port != 0 && ReadWireGuard(peer.Endpoints[1]).Port == port
}

// parseData reads a peer's BackendData. Old flannels left Port out; they knew their own.
func (b wireguard) parseData(e subnet.Endpoint, own uint16) (d WireGuardData, key kernel.WGKey, err error) {
	if err = json.Unmarshal(e.Data, &d); err != nil {
		return d, key, fmt.Errorf("BackendData: %w", err)
	}
	if d.Port == 0 {
		d.Port = own
	}
	if key, err = kernel.ParseWGKey(d.PublicKey); err != nil {
		return d, key, fmt.Errorf("BackendData: PublicKey: %w", err)
	}
	if key == b.public {
		return d, key, OwnError{Key: key}
	}
	// A lease that names DNS, say, would have every host that sends to the subnet send there.
	for _, at := range append(slices.Clone(d.Endpoints), netip.AddrPortFrom(e.PublicIP, d.Port)) {
		if at.Port() < 1024 && at.Port() != b.ListenPort && at.Port() != b.ListenPortV6 {
			return d, key, fmt.Errorf("BackendData: Port %d is one of the system's, and not the network's (%d)", at.Port(), own)
		}
	}
	for _, at := range d.Endpoints {
		if ip := at.Addr(); !ip.IsGlobalUnicast() || ip.Is4In6() || e.Subnet.Contains(ip) {
			return d, key, fmt.Errorf("BackendData: Endpoints: %s is no address that another host can reach", at)
		}
	}
	return d, key, nil
}
