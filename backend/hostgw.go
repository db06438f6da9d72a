package backend

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// hostGW sends packets for a peer's subnet to the peer itself, as a gateway on the same segment.
type hostGW struct{ host Host }

type hostGWOptions struct{}

func parseHostGW(options json.RawMessage) (hostGWOptions, []string, error) {
	var o hostGWOptions
	unknown, err := decode(options, &o, "Type")
	return o, unknown, err
}

func (hostGWOptions) bind(host Host) (Backend, error) {
	if host.Unbound {
		return nil, fmt.Errorf("host-gw: the address of this host is on %s: peers cannot use it as a gateway; use vxlan, or name a link with --iface", host.Link)
	}
	for f, public := range host.PublicIPs {
		if public != host.Addrs[f] {
			return nil, fmt.Errorf("host-gw: public IP %s is not the address of %s (%s): peers cannot use it as a gateway; use vxlan, or drop --public-ip",
				public, host.Link, host.Addrs[f])
		}
	}
	if err := checkMTU(host, host.MTU); err != nil {
		return nil, err
	}
	return hostGW{host}, nil
}

func (b hostGW) MTU() int                            { return b.host.MTU }
func (hostGW) Data(subnet.Family) json.RawMessage    { return nil }
func (hostGW) Local(subnet.Endpoint) []kernel.Object { return nil }
func (hostGW) WantsNear() bool                       { return true }

func (b hostGW) Peer(_, peer subnet.Endpoint, near bool) (string, []kernel.Object, error) {
	if peer.PublicIP.IsValid() && !near {
		return "", nil, fmt.Errorf("host-gw: %s is not in the segment of %s: no route leads to it there without a gateway; use vxlan between segments",
			peer.PublicIP, b.host.Link)
	}
	r, err := direct(b.host, peer)
	return "host-gw", []kernel.Object{r}, err
}

// direct is the route to a peer on the same segment.
func direct(host Host, peer subnet.Endpoint) (kernel.Route, error) {
	if !peer.PublicIP.IsValid() {
		return kernel.Route{}, errors.New("the lease has no public IP of its subnet's family")
	}
	return kernel.Route{Dst: peer.Subnet, Via: peer.PublicIP, Link: host.Link}, nil
}

// leastMTU is what the family asks of every link, in bytes.
func leastMTU(f subnet.Family) int {
	if f == subnet.IPv4 {
		return 576 // RFC 791: every host must accept this
	}
	return 1280 // RFC 8200, section 5
}

// checkMTU refuses a container MTU on which the network's families do not work.
func checkMTU(host Host, mtu int) error {
	for f := range host.Addrs {
		if least := leastMTU(f); mtu < least {
			return fmt.Errorf("the MTU of %s, %d, leaves %d bytes for containers: %s needs %d; raise the link's MTU or set Backend.MTU",
				host.Link, host.MTU, mtu, f, least)
		}
	}
	return nil
}
