package backend

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// flannelUDPPort is where flannel's udp listens; IANA has given it to nobody.
const flannelUDPPort = 8285

// udpOptions are flannel's keys under Backend.
type udpOptions struct{ Port uint16 } // 0: flannelUDPPort

// udpData is what ours tell: flannel's lease has no BackendData with udp, and flannel does not look at it.
type udpData struct {
	Port       uint16 // where the host listens; 0: unknown
	Unfinished bool   `json:",omitzero"` // it takes packets whose inner checksums are not finished, as kernels do of each other
}

func parseUDP(options json.RawMessage) (udpOptions, []string, error) {
	var o udpOptions
	unknown, err := decode(options, &o, "Type", "Port")
	if o.Port == 0 {
		o.Port = flannelUDPPort
	}
	return o, unknown, err
}

// udp sends IPv4 packets as the payload of UDP, with nothing between. The kernel does it, or a process where the kernel cannot.
type udp struct {
	udpOptions
	host Host
	fou  kernel.IPIP   // the link of the kernel; zero: it is of a process
	tun  kernel.UDPTun // that
}

func (o udpOptions) bind(host Host) (Backend, error) {
	local, err := onlyIPv4("udp", host)
	if err != nil {
		return nil, err
	}
	b := udp{udpOptions: o, host: host}
	served := slices.ContainsFunc(host.Former, func(o kernel.Object) bool { _, ok := o.(kernel.UDPTun); return ok })
	if !served && host.lacks(kernel.FeatureFOU) == nil { // one of a process stays one: it has the port
		b.fou = kernel.IPIP{Name: kernel.Named(kernel.UDPName, host.Network), Local: local, MTU: b.MTU(), Port: o.Port, Unfinished: !host.Finished}
		if !host.Unbound {
			b.fou.Underlay = host.Link // so that one for protocol 4 can be there too
		}
		b.fou = host.sameIPIP(b.fou)
	} else {
		b.tun = kernel.UDPTun{Name: kernel.Named(kernel.UDPName, host.Network), Local: local, Port: o.Port, MTU: b.MTU()}
	}
	return b, checkMTU(host, b.MTU())
}

func (b udp) MTU() int      { return b.host.MTU - ipHeader - udpHeader }
func (udp) WantsNear() bool { return false }

func (b udp) Data(subnet.Family) json.RawMessage {
	data, _ := json.Marshal(udpData{Port: b.Port, Unfinished: b.inKernel()}) // a number and a bool: it cannot fail
	return data
}

func (b udp) inKernel() bool { return b.fou != kernel.IPIP{} }

func (b udp) Local(own subnet.Endpoint) []kernel.Object {
	if b.inKernel() {
		return onLink(b.fou, own)
	}
	return onLink(b.tun, own)
}

func (b udp) Peer(own, peer subnet.Endpoint, _ bool) (string, []kernel.Object, error) {
	if !peer.PublicIP.IsValid() {
		return "", nil, errors.New("the lease has no public IP of its subnet's family")
	}
	var d udpData
	if peer.Data != nil {
		if err := json.Unmarshal(peer.Data, &d); err != nil {
			return "", nil, fmt.Errorf("BackendData: %w", err)
		}
	}
	if d.Port != 0 && d.Port != b.Port {
		return "", nil, fmt.Errorf("BackendData: Port %d is not the network's (%d): udp reaches hosts of one port", d.Port, b.Port)
	}
	objs := b.Local(own)
	if b.inKernel() {
		return "udp", append(objs, through(b.fou, peer)), nil
	}
	return "udp", append(objs, kernel.UDPPeer{Link: b.tun.Name, Subnet: peer.Subnet, Host: peer.PublicIP},
		kernel.Route{Dst: peer.Subnet, Link: b.tun.Name}), nil
}

// TakesUnfinished says whether a host takes packets whose inner checksums are not finished: flanneld does not, nor does any
// process, which reads them from a socket.
func TakesUnfinished(l subnet.Lease) bool {
	e, ok := l.Endpoint(subnet.IPv4)
	var d udpData
	return ok && e.Data != nil && json.Unmarshal(e.Data, &d) == nil && d.Unfinished
}
