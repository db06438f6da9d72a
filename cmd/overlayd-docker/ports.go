package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/containernetworking/cni/libcni"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// portsKey is the option that holds the ports of -p.
const portsKey = "com.docker.network.portmap"

// portBinding is a port of -p, as Docker writes it.
type portBinding struct {
	Proto                 uint8 // IP's number
	Port                  uint16
	HostIP                string
	HostPort, HostPortEnd uint16 // a range to choose from; 0: any
}

// portMapping is one, as CNI's plugin portmap wants it.
type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

var protocols = map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"}

type openPorts struct {
	NetworkID, EndpointID string
	Options               map[string]json.RawMessage
}

// openPorts has ports of the host lead to an endpoint, as CNI hosts have it: by the reference plugin portmap. Asked again, the ports
// are those of now.
func (d *driver) openPorts(ctx context.Context, q openPorts) (none, error) {
	var wanted []portBinding
	if raw := q.Options[portsKey]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &wanted); err != nil {
			return none{}, fmt.Errorf("%s: %w", portsKey, err)
		}
	}
	var ep endpoint
	if err := d.state.load(endpoints, q.EndpointID, &ep); err != nil {
		return none{}, fmt.Errorf("endpoint %s: %w", q.EndpointID, err)
	}
	s, err := attachment.Open(ctx, attachment.DefaultDir, attachment.Shared)
	if err != nil {
		return none{}, err
	}
	defer s.Close()
	a, err := s.Load(keyOf(q.EndpointID))
	if err != nil {
		return none{}, err
	}
	if err := d.close(ctx, a); err != nil || len(wanted) == 0 {
		return none{}, err
	}

	d.ports <- struct{}{}
	defer func() { <-d.ports }()
	taken, err := d.takenPorts(s)
	if err != nil {
		return none{}, err
	}
	if ep.Ports, err = choose(ctx, wanted, taken); err != nil {
		return none{}, err
	}
	if err := d.state.save(endpoints, q.EndpointID, ep); err != nil { // others see them taken
		return none{}, err
	}
	list, rt, err := portmapOf(a)
	if err != nil {
		return none{}, err
	}
	rt.CapabilityArgs = map[string]any{"portMappings": ep.Ports}
	if _, err := d.cni.AddNetworkList(ctx, list, rt); err != nil {
		return none{}, errors.Join(fmt.Errorf("portmap: %w", err), d.close(context.WithoutCancel(ctx), a))
	}
	return none{}, nil
}

// closePorts takes them back; none is as well.
func (d *driver) closePorts(ctx context.Context, q endpointID) (none, error) {
	return none{}, attachment.With(ctx, attachment.DefaultDir, attachment.Shared, func(s *attachment.Store) error {
		a, err := s.Load(keyOf(q.EndpointID))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return d.close(ctx, a)
	})
}

// close takes back the ports of an endpoint, by the list and the capabilities that libcni has kept, where the CNI plugin and overlayctl
// cni gc find them too.
func (d *driver) close(ctx context.Context, a attachment.Attachment) error {
	var ep endpoint
	if err := d.state.load(endpoints, a.ContainerID, &ep); errors.Is(err, fs.ErrNotExist) || err == nil && len(ep.Ports) == 0 {
		return nil
	} else if err != nil {
		return err
	}
	list, rt, err := portmapOf(a)
	if err != nil {
		return err
	}
	rt.CapabilityArgs = map[string]any{"portMappings": ep.Ports}
	if err := d.cni.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("portmap: %w", err)
	}
	ep.Ports = nil
	return d.state.save(endpoints, a.ContainerID, ep)
}

// portmapOf is the configuration of portmap for an attachment: that of etc/10-overlay.conflist.
func portmapOf(a attachment.Attachment) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	list, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": attachment.DockerNetwork,
		"plugins": []any{map[string]any{
			"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true, "backend": "nftables", "prevResult": a.Result,
		}},
	})
	if err != nil {
		return nil, nil, err
	}
	conf, err := libcni.NetworkConfFromBytes(list)
	return conf, &libcni.RuntimeConf{ContainerID: a.ContainerID, IfName: ifName, NetNS: a.Netns}, err
}

// takenPorts are those that lead to endpoints which are there.
func (d *driver) takenPorts(s *attachment.Store) (taken []portMapping, err error) {
	ids, err := d.state.ids(endpoints)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		var ep endpoint
		if d.state.load(endpoints, id, &ep) != nil || len(ep.Ports) == 0 {
			continue
		}
		if _, err := s.Load(keyOf(id)); err == nil {
			taken = append(taken, ep.Ports...)
		}
	}
	return taken, nil
}

// choose picks a port of the host's for each that is wanted.
func choose(ctx context.Context, wanted []portBinding, taken []portMapping) (all []portMapping, err error) {
	for _, w := range wanted {
		m := portMapping{ContainerPort: w.Port, Protocol: protocols[w.Proto], HostIP: w.HostIP}
		if m.Protocol == "" {
			return nil, fmt.Errorf("-p: the protocol with the number %d is none of TCP, UDP and SCTP", w.Proto)
		}
		if w.HostPort == 0 {
			return nil, fmt.Errorf("-p %d/%s: say the host's port too (-p 8080:%[1]d), since Docker cannot show which one a plugin has chosen", w.Port, m.Protocol)
		}
		for port := int(w.HostPort); ; port++ {
			m.HostPort = uint16(port)
			if err = m.free(ctx, slices.Concat(taken, all)); err == nil {
				all = append(all, m)
				break
			}
			if port >= int(max(w.HostPort, w.HostPortEnd)) {
				return nil, fmt.Errorf("-p %d:%d/%s: %w", w.HostPort, w.Port, m.Protocol, err)
			}
		}
	}
	return all, nil
}

// free says why the host's port cannot be had: it leads to another container already, or something of the host's listens there.
func (m portMapping) free(ctx context.Context, taken []portMapping) error {
	for _, t := range taken {
		if t.HostPort == m.HostPort && t.Protocol == m.Protocol && (anywhere(t.HostIP) || anywhere(m.HostIP) || t.HostIP == m.HostIP) {
			return fmt.Errorf("port %d of the host leads to another container already", m.HostPort)
		}
	}
	var l interface{ Close() error }
	var err error
	at := net.JoinHostPort(m.HostIP, strconv.Itoa(int(m.HostPort)))
	switch m.Protocol {
	case "tcp":
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", at)
	case "udp":
		l, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", at)
	default:
		return nil
	}
	if err != nil {
		return fmt.Errorf("port %d of the host cannot be had: %w", m.HostPort, err)
	}
	return l.Close()
}

// anywhere says whether a port is of all addresses of the host's, of one family at least.
func anywhere(ip string) bool {
	addr, err := netip.ParseAddr(ip)
	return err != nil || addr.IsUnspecified()
}
