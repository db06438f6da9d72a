package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

type join struct {
	NetworkID, EndpointID string
	SandboxKey            string // the path at which the container's namespace is, or will be
}

type interfaceName struct{ SrcName, DstPrefix string }

type staticRoute struct {
	Destination string
	RouteType   int // 0: by NextHop
	NextHop     string
}

type joined struct {
	InterfaceName         interfaceName
	Gateway, GatewayIPv6  string
	StaticRoutes          []staticRoute
	DisableGatewayService bool
}

// pluggable is what removes an endpoint's link.
func pluggable(endpointID string) bridge.Pluggable {
	return bridge.Pluggable{Attachment: &bridge.Attachment{Container: bridge.Container{ID: endpointID, IfName: ifName}}}
}

// join makes the container's interface, which Docker moves into the container. The container can do nothing before its policies are
// in force: it has no interface until then.
func (d *driver) join(ctx context.Context, q join) (j joined, err error) {
	var ep endpoint
	if err := d.state.load(endpoints, q.EndpointID, &ep); err != nil {
		return j, fmt.Errorf("endpoint %s: %w", q.EndpointID, err)
	}
	n, err := d.network(q.NetworkID)
	if err != nil {
		return j, err
	}
	o, err := d.overlay(ep.Overlay)
	if err != nil {
		return j, err
	}
	a, err := d.newAttachment(q, ep, o)
	if err != nil {
		return j, err
	}
	s, err := attachment.Create(ctx, attachment.DefaultDir, attachment.Shared, attachment.GroupOf(o.subnetFile))
	if err != nil {
		return j, err
	}
	defer s.Close()
	if err := s.LockKey(ctx, a.Key()); err != nil {
		return j, err
	}
	if err := refuseSecond(s, a); err != nil {
		return j, err
	}
	d.identify(ctx, q, &a)
	if err := d.attach(ctx, s, &a, ep); err != nil {
		return j, errors.Join(err, d.undo(context.WithoutCancel(ctx), s, q.EndpointID))
	}
	j.InterfaceName.DstPrefix = "eth"
	j.InterfaceName.SrcName, _ = pluggable(q.EndpointID).Names()
	j.DisableGatewayService = n.Internal // nor by another bridge
	j.routes(o, a, n.Internal)
	return j, nil
}

// newAttachment is the record of an endpoint that is about to join.
func (d *driver) newAttachment(q join, ep endpoint, o overlay) (attachment.Attachment, error) {
	conf, err := o.conf()
	if err != nil {
		return attachment.Attachment{}, err
	}
	a := attachment.Attachment{
		Version: attachment.Version,
		Network: attachment.DockerNetwork, ContainerID: q.EndpointID, IfName: ifName,
		Netns: q.SandboxKey, Caller: attachment.Docker, Labels: map[string]string{networkLabel: q.NetworkID},
		Subnets: o.Subnets, Created: time.Now().UTC(), Delegate: conf, InProcess: true, RunDir: filepath.Dir(o.subnetFile),
		MAC: ep.MAC,
	}
	// Docker calls before there is a namespace, or for one that runs already.
	if id, err := attachment.NetnsID(q.SandboxKey); err == nil {
		a.NetnsID = id
	}
	return a, a.Key().Validate()
}

// attach makes the link, and waits for the policies.
func (d *driver) attach(ctx context.Context, s *attachment.Store, a *attachment.Attachment, ep endpoint) error {
	if err := s.Save(*a); err != nil { // before anything is made that only the record tells of
		return err
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	inner, err := bridge.New(a.Delegate, bridge.Container{ID: a.ContainerID, IfName: ifName, Netns: a.Netns})
	if err != nil {
		return err
	}
	p := bridge.Pluggable{Attachment: inner, MAC: mac}
	result, err := p.Plug(ctx, ep.Addresses)
	if err != nil {
		return err
	}
	if err := made(a, ep, result); err != nil {
		return err
	}
	if p.Waits {
		addrs := a.PolicyEndpoint().IPs
		pending.Forget(a.RunDir, addrs)
		a.Untracked = pending.Untracked(append(slices.Clone(addrs), a.LinkLocal()))
	}
	if err := s.Save(*a); err != nil || !p.Waits {
		return err
	}
	inForce, fail, err := pending.WaitTold(ctx, a.RunDir, a.PolicyEndpoint().IPs)
	if err == nil && fail && !inForce {
		err = errors.New("the policies of the container were not in force in time: is overlayd running? (policy-unready: fail)")
	}
	return err
}

// made completes the record by what there is now.
func made(a *attachment.Attachment, ep endpoint, result *types100.Result) (err error) {
	if a.Result, err = json.Marshal(result); err != nil {
		return err
	}
	port := result.Interfaces[1].Name
	link, err := netlink.LinkByName(port)
	if err != nil {
		return fmt.Errorf("%s: %w", port, err)
	}
	a.Addresses, a.Guard = ep.Addresses, attachment.Bridged
	a.HostIfName, a.HostIfIndex, a.HostMAC = port, link.Attrs().Index, link.Attrs().HardwareAddr.String()
	a.IfIndex = link.Attrs().ParentIndex
	return nil
}

// routes are those of the container. Without a gateway, as on an internal network, it has one to the overlay; so it has where its
// gateway is another network's.
func (j *joined) routes(o overlay, a attachment.Attachment, internal bool) {
	for _, s := range o.Subnets {
		gateway := s.Addr()
		if !slices.ContainsFunc(a.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() == gateway.Is6() }) {
			continue
		}
		if !internal && gateway.Is4() {
			j.Gateway = gateway.String()
		}
		if !internal && gateway.Is6() {
			j.GatewayIPv6 = gateway.String()
		}
		for _, n := range o.Networks {
			if n.Addr().Is6() == gateway.Is6() {
				j.StaticRoutes = append(j.StaticRoutes, staticRoute{Destination: n.String(), NextHop: gateway.String()})
			}
		}
	}
}

// refuseSecond refuses a container that is on the same overlay by another of Docker's networks. Docker refuses it too, since the two
// have routes to the same, when it is half done, and not so that anybody knows what to do.
func refuseSecond(s *attachment.Store, a attachment.Attachment) error {
	all, err := s.All(attachment.DockerNetwork)
	for _, b := range all.Usable {
		if b.Netns == a.Netns && b.ContainerID != a.ContainerID && b.HostIfIndex != 0 && slices.Equal(b.Subnets, a.Subnets) {
			return fmt.Errorf("the container is on the overlay by Docker's network %.12s already: one of an overlay's networks is enough, "+
				"since all of them reach each other (once it is stopped, docker network disconnect --force NETWORK CONTAINER takes this one out)", b.Labels[networkLabel])
		}
	}
	return err
}

// networkLabel is the label of a record that says Docker's network.
const networkLabel = "DOCKER_NETWORK_ID"

// change changes a record, if there is one and do says so.
func (d *driver) change(ctx context.Context, k attachment.Key, do func(*attachment.Attachment) (bool, error)) error {
	return attachment.With(ctx, attachment.DefaultDir, attachment.Shared, func(s *attachment.Store) error {
		if err := s.LockKey(ctx, k); err != nil {
			return err
		}
		a, err := s.Load(k)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, attachment.ErrUnusable) {
			return nil
		}
		if err != nil {
			return err
		}
		if changed, err := do(&a); err != nil || !changed {
			return err
		}
		return s.Save(a)
	})
}

// undo removes the link, the ports and the record of an endpoint; what is gone already is as well.
func (d *driver) undo(ctx context.Context, s *attachment.Store, id string) error {
	a, err := s.Load(keyOf(id))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, attachment.ErrUnusable) {
		a, err = attachment.Attachment{ContainerID: id}, nil // it has no more than its ports
	}
	if err == nil {
		err = d.close(ctx, a)
	}
	if err != nil {
		return err
	}
	if err := pluggable(id).Unplug(); err != nil {
		return err
	}
	return s.Remove(keyOf(id))
}
