package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
	"github.com/overlayd/overlayd/cniplugin/dead"
)

// addressSpace is the name of ours to Docker. By it a network's addresses are known to be from here.
const addressSpace = "overlayd"

// requested is the owner of an address that Docker has asked for, or is about to give back: it does not say for which endpoint. What
// stays so for minutes is taken for a leak when the pool is full, as all is that no record and no namespace has.
var requested = bridge.Owner{ContainerID: "docker", IfName: "requested"}

type requestPool struct {
	AddressSpace, Pool, SubPool string
	Options                     map[string]string
	V6                          bool
}

type pool struct {
	PoolID, Pool string
	Data         map[string]string
}

// requestPool names the pool of one of our networks, which stands for the host's lease as it is at any time. Unless Docker was told
// a range, it is told "everything": of a narrower one Docker would look whether it overlaps the host's routes, of which the bridge
// has one, and ask without end for another. To have a range is of use for fixed addresses.
func (d *driver) requestPool(_ context.Context, q requestPool) (p pool, err error) {
	if q.SubPool != "" {
		return p, fmt.Errorf("--ip-range %s: the range is the host's lease: leave it out", q.SubPool)
	}
	for key := range q.Options {
		if key != networkKey {
			return p, fmt.Errorf("--ipam-opt %s: the driver overlayd has the option network alone", key)
		}
	}
	name, err := canonical(q.Options[networkKey])
	if err != nil {
		return p, err
	}
	o, err := d.overlay(name)
	if err != nil {
		return p, err
	}
	var wanted netip.Prefix
	if q.Pool != "" {
		if wanted, err = netip.ParsePrefix(q.Pool); err != nil {
			return p, fmt.Errorf("--subnet %s: %w", q.Pool, err)
		}
		q.V6 = wanted.Addr().Is6()
	}
	own, err := o.of(q.V6)
	if err != nil {
		return p, err
	}
	p = pool{fmt.Sprintf("%s/%d", o.called(), familyNumber(q.V6)), "0.0.0.0/0", map[string]string{"com.docker.network.gateway": own.String()}}
	if q.V6 {
		p.Pool = "::/0"
	}
	if !wanted.IsValid() || wanted.Bits() == 0 {
		return p, nil
	}
	p.Pool = wanted.Masked().String()
	if wanted.Masked() != own.Masked() && !slices.Contains(o.Networks, wanted.Masked()) {
		return p, fmt.Errorf("--subnet %s: it is neither the host's lease %s nor a range of network %s: leave it out", wanted, own.Masked(), o.called())
	}
	return p, nil
}

// poolOf is the reverse of what requestPool calls a pool.
func (d *driver) poolOf(id string) (o overlay, v6 bool, err error) {
	name, family, ok := strings.Cut(id, "/")
	if !ok || family != "4" && family != "6" {
		return o, false, fmt.Errorf("there is no pool %q", id)
	}
	if name, err = canonical(name); err == nil {
		o, err = d.overlay(name)
	}
	return o, family == "6", err
}

type requestAddress struct {
	PoolID, Address string
	Options         map[string]string
}

type address struct{ Address string }

// requestAddress reserves an address; Docker says later, with the endpoint, for whom. If there is none those of dead containers are
// freed first. The gateway is nobody's to reserve.
func (d *driver) requestAddress(ctx context.Context, q requestAddress) (a address, err error) {
	o, v6, err := d.poolOf(q.PoolID)
	if err != nil {
		return a, err
	}
	own, err := o.of(v6)
	if err != nil {
		return a, err
	}
	var wanted netip.Addr
	if q.Address != "" {
		if wanted, err = netip.ParseAddr(q.Address); err != nil {
			return a, err
		}
	}
	if q.Options["RequestAddressType"] == "com.docker.network.gateway" {
		if wanted.IsValid() {
			own = netip.PrefixFrom(wanted, own.Bits())
		}
		return address{own.String()}, nil
	}
	conf, err := o.conf()
	if err != nil {
		return a, err
	}
	for tried := false; ; tried = true {
		pool, err := bridge.New(conf, bridge.Container{ID: requested.ContainerID, IfName: requested.IfName})
		if err != nil {
			return a, err
		}
		got, err := pool.Reserve(ctx, v6, wanted)
		if err == nil {
			return address{got.String()}, nil
		}
		if tried || !bridge.NoAddress(err) {
			return a, err
		}
		if freed, collectErr := d.collect(ctx); !freed {
			return a, errors.Join(err, collectErr)
		}
	}
}

// collect frees what dead containers hold, Docker's own and reservations that are nobody's: the CNI plugin does so with what it has
// attached.
func (d *driver) collect(ctx context.Context) (bool, error) {
	s, err := attachment.Open(ctx, attachment.DefaultDir, attachment.Exclusive)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // nothing was ever attached
	}
	if err != nil {
		return false, err
	}
	defer s.Close()
	networks, err := s.Networks()
	if err != nil {
		return false, err
	}
	all, err := s.All(attachment.DockerNetwork)
	if err != nil {
		return false, err
	}
	c := dead.Collector{}
	if c.Living, err = attachment.Living(); err != nil {
		return false, err
	}
	errs := []error{d.sweep(s), c.Attachments(all, func(a attachment.Attachment) error { return d.bury(ctx, s, a) }, s.Remove)}
	errs = append(errs, c.Reservations(ctx, bridge.DefaultPools, networks, func() (attachment.All, error) { return s.All(networks...) }))
	if len(c.Freed) > 0 {
		errs = append(errs, s.SaveFreed(attachment.FreedReport{At: time.Now().UTC(), Freed: c.Freed}))
	}
	return len(c.Freed) > 0, errors.Join(errs...)
}

// bury frees all that an endpoint has whose container is gone. Docker may delete the endpoint yet, when it starts.
func (d *driver) bury(ctx context.Context, s *attachment.Store, a attachment.Attachment) error {
	if err := d.undo(ctx, s, a.ContainerID); err != nil {
		return err
	}
	for _, p := range a.Addresses {
		if _, err := bridge.Pass(ctx, bridge.DefaultPools, attachment.PoolName(a.Subnets), p.Addr(), ownerOf(a.ContainerID), bridge.Owner{}); err != nil {
			return err
		}
	}
	return d.state.remove(endpoints, a.ContainerID)
}

type releaseAddress struct{ PoolID, Address string }

// releaseAddress frees an address that is no endpoint's: one that is has an owner who gives it up first. Docker frees too what it
// remembers of before a crash, when it may be another container's.
func (d *driver) releaseAddress(ctx context.Context, q releaseAddress) (none, error) {
	addr, err := netip.ParseAddr(q.Address)
	if err != nil {
		return none{}, err
	}
	for _, name := range bridge.Pools(bridge.DefaultPools) { // of this lease, or a former one
		if strings.HasPrefix(name, attachment.PoolPrefix) {
			_, err := bridge.Pass(ctx, bridge.DefaultPools, name, addr, requested, bridge.Owner{})
			if err != nil {
				return none{}, err
			}
		}
	}
	return none{}, nil
}
