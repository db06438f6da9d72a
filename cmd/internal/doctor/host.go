package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// features asks whether the kernel and the host have what the network needs. Modules are not loaded to find out.
func features(_ context.Context, h *Host) Finding {
	if len(h.Network.Pools) == 0 {
		return skip("the network is not known")
	}
	var wants []string
	switch kind := h.Network.Backend.Type; kind {
	case "vxlan", "ipip":
		wants = append(wants, kind)
	case "udp":
		// No kernel loads it by itself.
		if _, err := os.Stat(filepath.Join(h.Root, "sys/module/fou")); err != nil {
			return warn("fou is not loaded: a process carries the packets, not the kernel (docs/backends.md)",
				"if the kernel has the module: modprobe fou, echo fou >/etc/modules-load.d/fou.conf, systemctl restart overlayd")
		}
		wants = append(wants, "ipip")
	}
	var lacks []string
	for _, name := range wants {
		has, err := hasModule(h.Root, name)
		if err != nil {
			return unknown(err)
		}
		if !has {
			lacks = append(lacks, name)
		}
	}
	if h.Network.Backend.Type == "wireguard" {
		has, err := hasModule(h.Root, "wireguard")
		if err != nil {
			return unknown(err)
		}
		if !has {
			return warn("the kernel has no wireguard: a process carries the packets, at a fraction of the speed (docs/backends.md)",
				"install the kernel's modules (linux-modules-extra, kernel-modules-core), or a kernel of Linux 5.6 or newer")
		}
		wants = append(wants, "wireguard")
	}
	if len(lacks) > 0 {
		return fail("the kernel has no "+strings.Join(lacks, ", "), "install the kernel's extra modules (linux-modules-extra), or another backend: host-gw needs none")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return warn("no nft in PATH", "apt-get install nftables: ip-masq needs it")
	}
	return ok("%s", strings.Join(append(wants, "nft"), ", "))
}

// hasModule tells whether the running kernel has a module: loaded, built in, or ready to be loaded.
func hasModule(root, name string) (bool, error) {
	if _, err := os.Stat(filepath.Join(root, "sys/module", name)); err == nil {
		return true, nil
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, fmt.Errorf("uname: %w", err)
	}
	dir := filepath.Join(root, "lib/modules", unix.ByteSliceToString(u.Release[:]))
	known := false
	for _, index := range []string{"modules.builtin", "modules.dep"} { // "kernel/drivers/net/vxlan/vxlan.ko.xz: …"
		f, err := os.Open(filepath.Join(dir, index))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		known = true
		has := holds(f, "/"+name+".ko")
		f.Close()
		if has {
			return true, nil
		}
	}
	if !known {
		return false, fmt.Errorf("there are no lists of modules in %s", dir)
	}
	return false, nil
}

func holds(f *os.File, file string) bool {
	for lines := bufio.NewScanner(f); lines.Scan(); {
		path, _, _ := strings.Cut(lines.Text(), ":")
		if _, rest, ok := strings.Cut(path, file); ok && (rest == "" || rest[0] == '.') {
			return true
		}
	}
	return false
}

// underlay looks at the link that reaches the other hosts.
func underlay(_ context.Context, h *Host) Finding {
	if h.Status == nil || h.Status.Underlay == "" {
		return noDaemon()
	}
	name := h.Status.Underlay
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fail(fmt.Sprintf("%s: %v", name, err), "overlayd finds another link by itself; if none fits, set iface")
	}
	attrs := link.Attrs()
	switch {
	case attrs.Flags&net.FlagUp == 0:
		return fail(name+" is down", "ip link set "+name+" up")
	case attrs.RawFlags&unix.IFF_LOWER_UP == 0:
		return fail(name+" has no carrier", "look at the cable, or the switch's port")
	case attrs.MTU < h.Status.MTU:
		return fail(fmt.Sprintf("%s carries %d bytes, containers send up to %d", name, attrs.MTU, h.Status.MTU),
			fmt.Sprintf("ip link set %s mtu %d, or set MTU in the network's Backend", name, h.Status.MTU))
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return unknown(err)
	}
	var missing []string
	for _, ip := range h.Status.PublicIP {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.String() == ip }) {
			missing = append(missing, ip)
		}
	}
	if len(missing) > 0 {
		return ok("%s, MTU %d; peers know it as %s, which must be led here", name, attrs.MTU, strings.Join(missing, ", "))
	}
	return ok("%s, MTU %d, %s", name, attrs.MTU, strings.Join(h.Status.PublicIP, ", "))
}

// forwarding asks whether the kernel passes packets from one link to another.
func forwarding(_ context.Context, h *Host) Finding {
	if len(h.Network.Pools) == 0 {
		return skip("the network is not known")
	}
	for _, pool := range h.Network.Pools {
		name := "net.ipv6.conf.all.forwarding"
		if pool.Prefix.Addr().Is4() {
			name = "net.ipv4.ip_forward"
		}
		value, err := sysctl(name)
		if err != nil {
			return unknown(err)
		}
		if value != "1" {
			return fail(fmt.Sprintf("%s is %s", name, value), "sysctl -w "+name+"=1; overlayd sets it, so another program took it back: look in /etc/sysctl.d")
		}
	}
	return ok("on")
}

// strict is the value of rp_filter by which the kernel drops what comes in by another link than it would answer by
// (Documentation/networking/ip-sysctl.rst). The larger of a link's value and that of all counts.
const strict = "1"

// reversePath looks for peers that are answered by another link than the one on which overlayd lets them reach it. Where
// the kernel is strict, it drops what comes from them.
func reversePath(_ context.Context, h *Host) Finding {
	if h.Status == nil || h.Status.Underlay == "" {
		return noDaemon()
	}
	name := h.Status.Underlay
	all, err := sysctl("net.ipv4.conf.all.rp_filter")
	if err != nil {
		return unknown(err)
	}
	own, err := sysctl("net/ipv4/conf/" + name + "/rp_filter")
	if err != nil {
		return unknown(err)
	}
	if max(all, own) != strict {
		return ok("not strict on %s", name)
	}
	for _, p := range h.Status.Peers {
		for _, text := range p.PublicIPs {
			addr, err := netip.ParseAddr(text)
			if err != nil || !addr.Is4() {
				continue
			}
			if by, err := leavesBy(addr); err == nil && by != name {
				return fail(fmt.Sprintf("it is strict on %s, but %s is answered by %s: what it sends to %s is dropped", name, addr, by, name),
					fmt.Sprintf("sysctl -w net.ipv4.conf.%s.rp_filter=2, or mend the route to %s", name, addr))
			}
		}
	}
	return ok("strict on %s, and all peers are answered by it", name)
}

// leavesBy is the name of the link by which an address is reached.
func leavesBy(addr netip.Addr) (string, error) {
	routes, err := netlink.RouteGet(addr.AsSlice())
	if err != nil || len(routes) == 0 {
		return "", fmt.Errorf("route to %s: %w", addr, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", err
	}
	return link.Attrs().Name, nil
}

// sysctl reads a kernel parameter. A name with slashes may have dots in its parts.
func sysctl(name string) (string, error) {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	data, err := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(data)), err
}
