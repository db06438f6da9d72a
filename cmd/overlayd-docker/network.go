package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/overlayd/overlayd/subnet"
)

// driver answers Docker's calls. All that it remembers is on disk.
type driver struct {
	config
	log    *slog.Logger
	state  state
	docker *docker
	cni    *libcni.CNIConfig
	ports  chan struct{} // held while ports are looked for and taken
}

func newDriver(c config, log *slog.Logger) (*driver, error) {
	s, err := newState(c.stateDir)
	if err != nil {
		return nil, err
	}
	d := &driver{config: c, log: log, state: s, docker: newDocker(c.dockerSocket), ports: make(chan struct{}, 1)}
	d.cni = libcni.NewCNIConfig(c.cniBin, newOnePlugin(c.stateDir))
	return d, nil
}

// The keys of Docker's options that count.
const (
	genericKey  = "com.docker.network.generic" // of those that a person gives with -o
	internalKey = "com.docker.network.internal"
	networkKey  = "network" // of -o and of --ipam-opt
)

// ipamData is what the IPAM driver said of a pool of the network's.
type ipamData struct {
	AddressSpace, Pool, Gateway string
	AuxAddresses                map[string]string
}

type createNetwork struct {
	NetworkID          string
	Options            map[string]any
	IPv4Data, IPv6Data []ipamData
}

// createNetwork remembers one of Docker's networks. Several may be of one of ours.
func (d *driver) createNetwork(_ context.Context, q createNetwork) (none, error) {
	var n network
	if err := d.state.load(networks, q.NetworkID, &n); err == nil {
		return none{}, nil // Docker forgot that it has asked, or asks again when it starts
	} else if !errors.Is(err, fs.ErrNotExist) {
		return none{}, err
	}
	n.Internal, _ = q.Options[internalKey].(bool)
	name, err := networkOption(q.Options)
	if err != nil {
		return none{}, err
	}
	if n.Overlay, err = d.overlayOf(name, slices.Concat(q.IPv4Data, q.IPv6Data)); err != nil {
		return none{}, err
	}
	return none{}, d.state.save(networks, q.NetworkID, n)
}

// networkOption is what -o network= says: nil is nothing.
func networkOption(options map[string]any) (name *string, err error) {
	given, _ := options[genericKey].(map[string]any)
	for key, value := range given {
		text, ok := value.(string)
		if key != networkKey || !ok {
			return nil, fmt.Errorf("-o %s=%v: the driver overlayd has the option network alone: MTU and addresses are the overlay's", key, value)
		}
		if text, err = canonical(text); err != nil {
			return nil, err
		}
		name = &text
	}
	return name, nil
}

// canonical is the name in code of what people call a network.
func canonical(name string) (string, error) {
	if name == "" || name == subnet.DefaultNetwork {
		return "", nil
	}
	return name, subnet.ValidNetworkName(name)
}

// overlayOf is the network of ours that Docker's pools are of. Asked by name, it is to be that one.
func (d *driver) overlayOf(asked *string, pools []ipamData) (string, error) {
	for _, p := range pools {
		if p.AddressSpace != addressSpace {
			return "", fmt.Errorf("the addresses must be the overlay's: add --ipam-driver overlayd (compose: ipam: {driver: overlayd})")
		}
		if len(p.AuxAddresses) > 0 {
			return "", errors.New("--aux-address: the overlay's pool keeps no address free: run overlayd's hosts with their own subnets instead")
		}
	}
	all, err := d.overlays()
	if err != nil {
		return "", err
	}
	if len(pools) == 0 {
		return "", errors.New("the network has neither IPv4 nor IPv6")
	}
	for _, o := range all {
		if !o.hasGateways(pools) {
			continue
		}
		if asked != nil && *asked != o.name {
			want := overlay{name: *asked}.called()
			return "", fmt.Errorf("-o network=%s: the addresses are of network %s: add --ipam-opt network=%[1]s", want, o.called())
		}
		return o.name, nil
	}
	return "", fmt.Errorf("--gateway %s: the gateway is the host's own address on the overlay: leave it out", pools[0].Gateway)
}

// hasGateways says whether the pools' gateways are this host's.
func (o overlay) hasGateways(pools []ipamData) bool {
	return !slices.ContainsFunc(pools, func(p ipamData) bool {
		text, _, _ := strings.Cut(p.Gateway, "/")
		gateway, err := netip.ParseAddr(text)
		return err != nil || !slices.ContainsFunc(o.Subnets, func(s netip.Prefix) bool { return s.Addr() == gateway })
	})
}

type networkID struct{ NetworkID string }

// deleteNetwork forgets one of Docker's networks; none is as well.
func (d *driver) deleteNetwork(_ context.Context, q networkID) (none, error) {
	return none{}, d.state.remove(networks, q.NetworkID)
}
