package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// wireGuardKey is the public key that a lease tells, in the first of its families; both have the same.
func wireGuardKey(l subnet.Lease) string {
	for _, e := range l.Endpoints {
		if key := backend.ReadWireGuard(e).PublicKey; key != "" && l.Backend == backend.WireGuard {
			return key
		}
	}
	return ""
}

// wgNetwork is what a wireguard network's config says that peers outside need to know.
type wgNetwork struct {
	subnet.Network
	options backend.WireGuardOptions
}

// wireGuardNetwork is the network in etcd, which must be of wireguard.
func (a *app) wireGuardNetwork(ctx context.Context) (n wgNetwork, err error) {
	raw, _, err := a.network(ctx)
	if err != nil {
		return n, err
	}
	if n.Network, err = subnet.ParseNetwork(raw); err != nil {
		return n, err
	}
	if n.Backend.Type != backend.WireGuard {
		return n, fmt.Errorf("the network's backend is %s: only into a network of wireguard can a machine without overlayd be let (overlayctl network set)",
			n.Backend.Type)
	}
	n.options, err = backend.ParseWireGuard(n.Backend)
	return n, err
}

// separate says whether each of two families has a link of its own.
func (n wgNetwork) separate() bool { return len(n.Pools) > 1 && !n.options.Single() }

// printPeerConfig prints the configuration of a peer outside the network. Of two links it prints one.
func (a *app) printPeerConfig(ctx context.Context, n wgNetwork, l subnet.Lease, private kernel.Secret, ipv6 bool) error {
	if ipv6 && !n.separate() {
		return usageError{errors.New("--ipv6: the network has one link for both families, or one family: its configuration is one")}
	}
	records, err := a.listLeases(ctx)
	if err != nil {
		return err
	}
	p := newOutsidePeer(l)
	p.Config = n.peerConfig(l, records, private, ipv6)
	if err := a.print(p, func(w io.Writer) { _, err = io.WriteString(w, p.Config) }); err != nil {
		return err
	}
	if n.separate() && !ipv6 && a.output.forPeople() {
		fmt.Fprintf(a.stderr, "overlayctl: this is the link of IPv4; the one of IPv6: overlayctl peers config %s --ipv6\n", l.Host)
	}
	return err
}

// peerConfig is the configuration of a peer outside the network for wg-quick(8).
func (n wgNetwork) peerConfig(l subnet.Lease, hosts []subnet.Record, private kernel.Secret, ipv6 bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s in the network %s. Its hosts change: overlayctl peers config %[1]s\n[Interface]\n", l.Host, n)
	if private == (kernel.Secret{}) {
		fmt.Fprintf(&b, "# PrivateKey = that of %s\n", wireGuardKey(l))
	} else {
		fmt.Fprintf(&b, "PrivateKey = %s\n", private.Base64())
	}
	var addrs []string
	listen := uint16(0)
	for _, e := range n.carried(l, ipv6) {
		addr := e.Subnet.Addr().Next()
		addrs = append(addrs, netip.PrefixFrom(addr, addr.BitLen()).String())
		if e.PublicIP.IsValid() {
			listen = cmp.Or(listen, backend.ReadWireGuard(e).Port)
		}
	}
	fmt.Fprintf(&b, "Address = %s\n", strings.Join(addrs, ", "))
	if listen != 0 {
		fmt.Fprintf(&b, "ListenPort = %d\n", listen)
	}
	if n.options.MTU != 0 {
		fmt.Fprintf(&b, "MTU = %d\n", n.options.MTU-backend.WireGuardOverhead)
	}
	for _, r := range hosts {
		if r.Backend == backend.WireGuard && r.Key() != l.Key() {
			n.writePeer(&b, r.Lease, ipv6)
		}
	}
	return b.String()
}

// writePeer writes the section of a peer of that peer: a host, or another one outside.
func (n wgNetwork) writePeer(b *strings.Builder, r subnet.Lease, ipv6 bool) {
	key, err := kernel.ParseWGKey(wireGuardKey(r))
	carried := n.carried(r, ipv6)
	if err != nil || len(carried) == 0 || r.Outside() && !carried[0].PublicIP.IsValid() {
		return // who makes no sense, or can only call, as this one can
	}
	fmt.Fprintf(b, "\n[Peer]\n# %s\nPublicKey = %s\n", printable(r.Who()), key)
	if n.options.PSK != "" {
		fmt.Fprintf(b, "PresharedKey = %s\n", n.options.PSK)
	}
	var allowed []string
	for _, e := range carried {
		allowed = append(allowed, e.Subnet.String())
	}
	fmt.Fprintf(b, "AllowedIPs = %s\n", strings.Join(allowed, ", "))
	if at := n.endpoint(carried); at.IsValid() {
		fmt.Fprintf(b, "Endpoint = %s\n", at)
	}
	fmt.Fprintf(b, "PersistentKeepalive = %d\n", backend.NATKeepalive)
}

// carried are the endpoints of a lease whose packets go by one link: that of IPv4, or of IPv6, or the one of both.
func (n wgNetwork) carried(l subnet.Lease, ipv6 bool) (all []subnet.Endpoint) {
	for _, e := range l.Endpoints {
		if !n.separate() || e.Subnet.Addr().Is6() == ipv6 {
			all = append(all, e)
		}
	}
	return all
}

// endpoint is where a host is called. Where one link serves both families, its port is BackendData's for either.
func (n wgNetwork) endpoint(carried []subnet.Endpoint) (at netip.AddrPort) {
	for _, e := range carried {
		preferred := n.options.Mode == "ipv6" && e.PublicIP.Is6()
		if e.PublicIP.IsValid() && (!at.IsValid() || preferred) {
			at = netip.AddrPortFrom(e.PublicIP, cmp.Or(backend.ReadWireGuard(carried[0]).Port, n.options.Port(subnet.FamilyOf(e.PublicIP))))
		}
	}
	return at
}
