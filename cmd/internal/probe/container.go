package probe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostLocal is where the IPAM plugin host-local has a directory for each network, with a file for each address in use.
const hostLocal = "/var/lib/cni/networks"

// claimed is what a file of host-local's has in it whose address is ours, and claimAge how old it is at least if who
// wrote it was killed.
const (
	claimed  = "overlayctl-probe\r\neth0"
	claimAge = time.Minute
)

// container is a network namespace that is attached to the host as a container's is, with an address of each of the
// host's subnets. The namespace and its links end with the process at the latest.
type container struct {
	addrs []netip.Addr
	link  string // by which what it sends comes to the host: the bridge, or the host's end of its own link
	work  chan func()
	undo  []func()
}

// newContainer attaches a namespace to a bridge of the host's, or by a link of its own where bridge is nil. It gets none
// of the addresses that are taken.
func newContainer(ctx context.Context, subnets []netip.Prefix, bridge netlink.Link, taken []netip.Addr) (_ *container, err error) {
	c := &container{work: make(chan func())}
	defer func() {
		if err != nil {
			c.close()
			err = fmt.Errorf("probe from a namespace of its own: %w", err)
		}
	}()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, host.Close)
	ns, err := c.enter()
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, func() { ns.Close() })
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	c.undo = append(c.undo, inside.Close)

	var id [4]byte
	rand.Read(id[:]) // it never fails (crypto/rand)
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	veth.Name = fmt.Sprintf("overlayp%x", id[:3])
	// A bridge without a MAC of its own takes the lowest of its ports'.
	veth.HardwareAddr = append(net.HardwareAddr{0xfe, 0xff}, id[:]...)
	if err := host.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("link %s: %w", veth.Name, err)
	}
	c.undo = append(c.undo, func() { _ = host.LinkDel(veth) }) // if it fails, it goes with the namespace
	end, err := inside.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	c.link = veth.Name
	if bridge != nil {
		c.link = bridge.Attrs().Name
		if err := host.LinkSetMaster(veth, bridge); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", c.link, err)
		}
	}
	if err := errors.Join(inside.LinkSetUp(end), host.LinkSetUp(veth), waitUp(ctx, host, veth.Name, c.link)); err != nil {
		return nil, err
	}
	outer, err := host.LinkByName(c.link) // its MAC may be another now
	if err != nil {
		return nil, err
	}
	for _, subnet := range subnets {
		addr, err := c.pick(ctx, host, subnet.Masked(), outer, taken)
		if err != nil {
			return nil, err
		}
		if err := c.configure(host, inside, addr, outer, end); err != nil {
			return nil, fmt.Errorf("%s: %w", addr, err)
		}
		c.addrs = append(c.addrs, addr)
	}
	return c, nil
}

// enter makes the namespace, and a thread that does the work in it.
func (c *container) enter() (ns netns.NsHandle, err error) {
	entered := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for good: the thread is in the namespace, and ends with this goroutine
		ns, err = netns.New()
		close(entered)
		for f := range c.work {
			f()
		}
	}()
	<-entered
	return ns, err
}

// ping is Ping from inside.
func (c *container) ping(ctx context.Context, targets []Target, cfg Config) (results []Result, err error) {
	done := make(chan struct{})
	c.work <- func() {
		defer close(done)
		results, err = Ping(ctx, targets, cfg)
	}
	<-done
	return results, err
}

// close leaves nothing behind.
func (c *container) close() {
	close(c.work)
	for _, undo := range slices.Backward(c.undo) {
		undo()
	}
}

// waitUp waits until the links carry packets.
func waitUp(ctx context.Context, host *netlink.Handle, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, name := range names {
		for pause := time.Millisecond; ; pause *= 2 {
			link, err := host.LinkByName(name)
			if err != nil {
				return fmt.Errorf("link %s: %w", name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("link %s is %v, not up", name, link.Attrs().OperState)
			case <-time.After(pause):
			}
		}
	}
	return nil
}

// configure gives the namespace an address, and a default route by the host's link. Neither side needs to ask for the
// other's MAC: an address that is just there might not answer yet (DAD).
func (c *container) configure(host, inside *netlink.Handle, addr netip.Addr, outer, inner netlink.Link) error {
	whole := func(a netip.Addr) *net.IPNet {
		return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	}
	gateway, anywhere := netip.MustParseAddr("fe80::1"), netip.MustParsePrefix("::/0")
	if addr.Is4() {
		gateway, anywhere = netip.MustParseAddr("169.254.1.1"), netip.MustParsePrefix("0.0.0.0/0")
	}
	at := outer.Attrs().Index
	// The host's entry is one that it would have found itself, and forgets if we are killed.
	entry := &netlink.Neigh{LinkIndex: at, IP: addr.AsSlice(), HardwareAddr: inner.Attrs().HardwareAddr, State: netlink.NUD_REACHABLE}
	c.undo = append(c.undo, func() { _ = host.NeighDel(entry) })
	var route error
	if outer.Type() == "veth" {
		route = host.RouteAdd(&netlink.Route{LinkIndex: at, Dst: whole(addr), Scope: netlink.SCOPE_LINK})
	}
	return errors.Join(route, host.NeighSet(entry),
		inside.AddrAdd(inner, &netlink.Addr{IPNet: whole(addr), Flags: unix.IFA_F_NODAD}),
		inside.NeighSet(&netlink.Neigh{LinkIndex: inner.Attrs().Index, IP: gateway.AsSlice(), HardwareAddr: outer.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT}),
		inside.RouteAdd(&netlink.Route{
			LinkIndex: inner.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Dst: &net.IPNet{IP: anywhere.Addr().AsSlice(), Mask: net.CIDRMask(0, addr.BitLen())},
		}))
}

// pick finds an address of the subnet that no container has, from the end, where IPAM comes last, and keeps host-local
// from giving it away.
func (c *container) pick(ctx context.Context, host *netlink.Handle, subnet netip.Prefix, link netlink.Link, taken []netip.Addr) (netip.Addr, error) {
	const tries = 32
	end := subnet.Addr().AsSlice()
	for bit := subnet.Bits(); bit < len(end)*8; bit++ {
		end[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(end)
	for range tries {
		addr = addr.Prev() // not the last: it is IPv4's broadcast
		if !subnet.Contains(addr) || addr == subnet.Addr() {
			break
		}
		if slices.Contains(taken, addr) {
			continue
		}
		undo, err := claim(hostLocal, addr, subnet)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return addr, err
		}
		used, err := inUse(ctx, host, addr, link)
		if err != nil || !used {
			c.undo = append(c.undo, undo)
			return addr, err
		}
		undo()
	}
	return addr, fmt.Errorf("no free address at the end of %s", subnet)
}

// claim keeps host-local from giving an address away, wherever it gives away addresses of the subnet. The error is
// fs.ErrExist if it has done so.
func claim(networks string, addr netip.Addr, subnet netip.Prefix) (undo func(), err error) {
	var made []string
	undo = func() {
		for _, file := range made {
			os.Remove(file)
		}
	}
	files, _ := filepath.Glob(filepath.Join(networks, "*", "*")) // the pattern is right
	for _, file := range files {
		mine := filepath.Join(filepath.Dir(file), addr.String())
		if a, err := netip.ParseAddr(filepath.Base(file)); err != nil || !subnet.Contains(a) || slices.Contains(made, mine) {
			continue
		}
		if old, err := os.Stat(mine); err == nil && time.Since(old.ModTime()) > claimAge {
			if text, _ := os.ReadFile(mine); string(text) == claimed {
				os.Remove(mine)
			}
		}
		f, err := os.OpenFile(mine, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			made = append(made, mine)
			_, err = f.WriteString(claimed)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			undo()
			return nil, err
		}
	}
	return undo, nil
}

// inUse tells whether the host has a route to the address alone, or anything at the link answers for it.
func inUse(ctx context.Context, host *netlink.Handle, addr netip.Addr, link netlink.Link) (bool, error) {
	family := netlink.FAMILY_V6
	if addr.Is4() {
		family = netlink.FAMILY_V4
	}
	alone := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
	routes, err := host.RouteListFiltered(family, &netlink.Route{Dst: alone, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	if err != nil || len(routes) > 0 || link.Type() == "veth" {
		return len(routes) > 0, err
	}
	results, pingErr := Ping(ctx, []Target{{Addr: addr}}, Config{Count: 1, Timeout: 200 * time.Millisecond})
	used := pingErr == nil && results[0].Received > 0
	all, err := host.NeighList(link.Attrs().Index, family)
	for _, n := range all {
		switch {
		case !n.IP.Equal(addr.AsSlice()):
		case len(n.HardwareAddr) > 0:
			used = true
		default:
			_ = host.NeighDel(&n) // that nobody answered
		}
	}
	return used, errors.Join(pingErr, err)
}
