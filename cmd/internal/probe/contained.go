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
	// Asked is how many addresses of peers answer the host itself, which are those that the container has asked; 0: it
	// has asked another one beside it on this host instead.
	Asked int
	// Lost are those that do not answer the container, by the peer's subnet; of the one beside it, by its own.
	Lost map[netip.Prefix]Loss
}

// Contain compares what this host hears of its peers with what a container on it hears: for a few seconds there is one,
// a namespace with an address of each of the host's subnets, on the bridge of the other containers if there is one. Its
// packets are forwarded, as all containers' are, through every chain that the host's own do not see. Where one is lost,
// it is sent again and followed. Nothing is left of it. The error is that it could not be tried.
func Contain(ctx context.Context, own []string, ways []Way) (Contained, error) {
	found := Contained{Lost: map[netip.Prefix]Loss{}}
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
	if found.Asked = len(asked); len(asked) == 0 {
		beside, err := newContainer(ctx, subnets, nil, c.addrs)
		if err != nil {
			return found, err
		}
		defer beside.close()
		for i, addr := range beside.addrs {
			asked = append(asked, Way{Subnet: subnets[i], Overlay: addr})
		}
	}
	results, err := c.ping(ctx, targetsOf(asked), quickly)
	if err != nil {
		return found, err
	}
	causes := map[bool]Loss{} // by family: what drops one peer's packets drops those of the others
	for i, r := range results {
		if r.Received > 0 {
			continue
		}
		cause, known := causes[r.Addr.Is4()]
		if !known {
			var lost bool
			if cause, lost, err = c.follow(ctx, r.Addr); err != nil {
				return found, err
			}
			if !lost {
				continue
			}
			causes[r.Addr.Is4()] = cause
		}
		found.Lost[asked[i].Subnet] = cause
	}
	return found, nil
}

// answering are the ways to addresses inside the peers' subnets that answer this host, in its own families.
func answering(ctx context.Context, subnets []netip.Prefix, ways []Way) ([]Way, error) {
	var inside []Way
	for _, w := range ways {
		own := slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == w.Subnet.Addr().Is4() })
		if !own || !w.Overlay.IsValid() {
			continue
		}
		if !w.Tunnelled() { // the host's own address is not in its subnet; that of its bridge is there with its first container
			w.Overlay = w.Subnet.Addr().Next()
		}
		inside = append(inside, w)
	}
	results, err := Ping(ctx, targetsOf(inside), quickly)
	var answer []Way
	for i, r := range results {
		if r.Received > 0 {
			answer = append(answer, inside[i])
		}
	}
	return answer, err
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

func targetsOf(ways []Way) []Target {
	var targets []Target
	for _, w := range ways {
		targets = append(targets, Target{Addr: w.Overlay})
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
