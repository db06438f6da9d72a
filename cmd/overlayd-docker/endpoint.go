package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// ifName is what records call a container's interface: Docker chooses the number, and says it to nobody.
const ifName = "eth0"

func keyOf(endpointID string) attachment.Key {
	return attachment.Key{Network: attachment.DockerNetwork, ContainerID: endpointID, IfName: ifName}
}

func ownerOf(endpointID string) bridge.Owner {
	return bridge.Owner{ContainerID: endpointID, IfName: ifName}
}

// addresses are an endpoint's, as Docker writes them.
type addresses struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

type createEndpoint struct {
	NetworkID, EndpointID string
	Interface             *addresses
}

type createdEndpoint struct{ Interface *addresses }

// createEndpoint makes the addresses that Docker has asked for the endpoint's. Docker hears of the MAC, unless it chose one.
func (d *driver) createEndpoint(ctx context.Context, q createEndpoint) (created createdEndpoint, err error) {
	n, err := d.network(q.NetworkID)
	if err != nil {
		return created, err
	}
	o, err := d.overlay(n.Overlay)
	if err != nil {
		return created, err
	}
	ep := endpoint{NetworkID: q.NetworkID, Overlay: n.Overlay, Pool: attachment.PoolName(o.Subnets)}
	if q.Interface == nil {
		return created, errors.New("the endpoint has no address: the network needs --ipam-driver overlayd")
	}
	if ep.Addresses, err = q.Interface.parse(); err != nil {
		return created, err
	}
	if ep.MAC = q.Interface.MacAddress; ep.MAC == "" {
		ep.MAC = bridge.MACOf(ep.Addresses[0].Addr()).String()
		created.Interface = &addresses{MacAddress: ep.MAC}
	} else if mac, err := net.ParseMAC(ep.MAC); err != nil || len(mac) != 6 {
		return created, fmt.Errorf("MAC address %s: it has not six bytes", ep.MAC)
	}
	if err := d.state.save(endpoints, q.EndpointID, ep); err != nil {
		return created, err
	}
	for _, a := range ep.Addresses {
		ok, err := bridge.Pass(ctx, bridge.DefaultPools, ep.Pool, a.Addr(), requested, ownerOf(q.EndpointID))
		if err == nil && !ok {
			err = fmt.Errorf("%s is not reserved for it: the lease has changed meanwhile, or the network's addresses are not overlayd's", a.Addr())
		}
		if err != nil {
			return created, errors.Join(err, d.forget(ctx, q.EndpointID, ep))
		}
	}
	return created, nil
}

// parse checks what Docker says.
func (a addresses) parse() (all []netip.Prefix, err error) {
	for _, text := range []string{a.Address, a.AddressIPv6} {
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		err = errors.New("the endpoint has no address: the network needs --ipam-driver overlayd")
	}
	return all, err
}

// network is one that Docker has created.
func (d *driver) network(id string) (n network, err error) {
	if err = d.state.load(networks, id, &n); errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("network %s is not known here any more (%s): remove it from Docker and create it again", id, d.stateDir)
	}
	return n, err
}

// forget gives the addresses back to Docker, which releases them, and removes the file.
func (d *driver) forget(ctx context.Context, id string, ep endpoint) error {
	for _, a := range ep.Addresses {
		if _, err := bridge.Pass(ctx, bridge.DefaultPools, ep.Pool, a.Addr(), ownerOf(id), requested); err != nil {
			return err
		}
	}
	return d.state.remove(endpoints, id)
}

type endpointID struct{ NetworkID, EndpointID string }

type endpointInfo struct{ Value map[string]any }

// endpointInfo is for `docker network inspect --verbose`. That Docker shows no ports of it is Docker's: it takes them of its own
// drivers alone.
func (d *driver) endpointInfo(_ context.Context, q endpointID) (info endpointInfo, err error) {
	var ep endpoint
	if err := d.state.load(endpoints, q.EndpointID, &ep); err != nil {
		return info, fmt.Errorf("endpoint %s: %w", q.EndpointID, err)
	}
	_, port := pluggable(q.EndpointID).Names()
	info.Value = map[string]any{"overlayd.network": overlay{name: ep.Overlay}.called(), "overlayd.link": port}
	return info, nil
}

// deleteEndpoint removes all that there is of an endpoint; nothing is as well. Docker frees the addresses itself.
func (d *driver) deleteEndpoint(ctx context.Context, q endpointID) (none, error) {
	var ep endpoint
	if err := d.state.load(endpoints, q.EndpointID, &ep); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return none{}, err
	}
	err := attachment.With(ctx, attachment.DefaultDir, attachment.Shared, func(s *attachment.Store) error {
		if err := s.LockKey(ctx, keyOf(q.EndpointID)); err != nil {
			return err
		}
		return d.undo(ctx, s, q.EndpointID)
	})
	if err != nil {
		return none{}, err
	}
	return none{}, d.forget(ctx, q.EndpointID, ep)
}
