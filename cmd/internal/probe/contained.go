package probe

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// quickly is how a container and the host are compared: twice more than once, because the first packet may have to find
// its neighbour.
var quickly = Config{Count: 3, Interval: 100 * time.Millisecond, Timeout: time.Second}

// Contained is what came of the echoes of a container.
type Contained struct {
	// Asked is how many subnets of peers answer the host itself, which are those that the container has asked; 0: it has
	// asked another one beside it on this host instead.
	Asked int
	// Lost are those that do not answer the container, by the peer's subnet; of the one beside it, by its own.
	Lost map[netip.Prefix]Loss
}

// Contain compares what this host hears of its peers with what a container on it hears: for a few seconds there is one,
// a namespace with an address of each of the host's subnets, on the bridge of the other containers if there is one. Its
// packets are forwarded, as all containers' are, through every chain that the host's own do not see. Where one is lost,
// it is sent again and followed. Nothing is left of it. The error is that it could not be tried.
func Contain(ctx context.Context, own []string, ways []Way) (Contained, error) {
	found, heard := Contained{Lost: map[netip.Prefix]Loss{}}, map[netip.Prefix]bool{}
	subnets := prefixes(own)
	if len(subnets) == 0 {
		return found, errors.New("this host has no subnet")
	}
	asked, err := answering(ctx, subnets, ways)
	if err != nil {
		return found, err
	}
	bridge, err := bridgeOf(subnets)
	if err != nil {
		return found, err
	}
	c, err := newContainer(ctx, subnets, bridge, nil)
	if err != nil {
		return found, err
	}
	defer c.close()
	for _, q := range asked {
		heard[q.subnet] = true
	}
	if found.Asked = len(heard); found.Asked == 0 {
		beside, err := newContainer(ctx, subnets, nil, c.addrs)
		if err != nil {
			return found, err
		}
		defer beside.close()
		for i, addr := range beside.addrs {
			asked = append(asked, both(subnets[i], addr)...)
		}
	}
	return found, c.compare(ctx, asked, found.Lost)
}

// compare finds which of the questions are answered to the host and not to the container, and why.
func (c *container) compare(ctx context.Context, asked []question, lost map[netip.Prefix]Loss) error {
	results, err := c.ping(ctx, targetsOf(asked), quickly)
	if err != nil {
		return err
	}
	type kind struct{ v4, udp bool }
	causes := map[kind]Loss{} // what drops one peer's packets drops those of the others
	for i, r := range results {
		if r.Received > 0 {
			continue
		}
		k := kind{r.Addr.Is4(), r.UDP}
		cause, known := causes[k]
		if !known {
			still := false
			if cause, still, err = c.follow(ctx, r.Target); err != nil {
				return err
			}
			if !still {
				continue
			}
			causes[k] = cause
		}
		lost[asked[i].subnet] = cause
	}
	return nil
}

// question is a target inside a subnet.
type question struct {
	subnet netip.Prefix
	Target
}

// both are the questions to an address. Many a firewall passes echoes and nothing else: ufw does.
func both(subnet netip.Prefix, addr netip.Addr) []question {
	return []question{{subnet, Target{Addr: addr}}, {subnet, Target{Addr: addr, UDP: true}}}
}

// answering are the questions to addresses inside the peers' subnets that this host itself gets an answer to.
func answering(ctx context.Context, subnets []netip.Prefix, ways []Way) ([]question, error) {
	var all, answered []question
	for _, w := range ways {
		own := slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == w.Subnet.Addr().Is4() })
		if !own || !w.Overlay.IsValid() {
			continue
		}
		if !w.Tunnelled() { // the host's own address is not in its subnet; that of its bridge is there with its first container
			w.Overlay = w.Subnet.Addr().Next()
		}
		all = append(all, both(w.Subnet, w.Overlay)...)
	}
	results, err := Ping(ctx, targetsOf(all), quickly)
	for i, r := range results {
		if r.Received > 0 {
			answered = append(answered, all[i])
		}
	}
	return answered, err
}

func prefixes(texts []string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p)
		}
	}
	return all
}

func targetsOf(asked []question) []Target {
	var targets []Target
	for _, q := range asked {
		targets = append(targets, q.Target)
	}
	return targets
}

// bridgeOf is the bridge that has an address of one of the subnets; nil if there is none.
func bridgeOf(subnets []netip.Prefix) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if link.Type() != "bridge" {
			continue
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			addr, _ := netip.AddrFromSlice(a.IP)
			if slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(addr.Unmap()) }) {
				return link, nil
			}
		}
	}
	return nil, nil
}
