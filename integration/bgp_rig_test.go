package integration

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// inLab has the addresses of the laboratory in the place of those of docs/bgp.md.
var inLab = []string{
	"2001:db8:1::11", "fd00:30:1::b",
	"192.0.2.", "172.30.1.", "198.51.100.", "172.30.2.", "203.0.113.", "172.30.3.", "2001:db8:1:", "fd00:30:1:",
	"10.244.0.0/16", overlayV4, "fd00:244::/48", overlayV6,
}

// bird is BIRD on a node.
type bird struct {
	*Process
	node *Node
	dir  string
}

// startBird starts BIRD with a configuration.
func startBird(n *Node, conf string) *bird {
	n.t.Helper()
	b := &bird{node: n, dir: n.t.TempDir()}
	b.start(conf)
	return b
}

func (b *bird) start(conf string) {
	b.node.t.Helper()
	file := filepath.Join(b.dir, "bird.conf")
	if err := os.WriteFile(file, []byte("log stderr all;\n"+conf), 0o600); err != nil {
		b.node.t.Fatal(err)
	}
	b.Process = b.node.Spawn("bird on "+b.node.Name, nil, "bird", "-f", "-c", file, "-s", b.socket(), "-P", filepath.Join(b.dir, "pid"))
}

func (b *bird) socket() string { return filepath.Join(b.dir, "ctl") }

// routes are those to subnets of the overlay that it has from BGP, with a next hop each.
func (b *bird) routes() (routes []string, err error) {
	out, err := b.node.Try("birdc", "-r", "-s", b.socket(), "show", "route", "where", "source", "=", "RTS_BGP")
	if err != nil {
		return nil, err
	}
	dst := ""
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) > 0 && strings.Contains(fields[0], "/") {
			dst = fields[0]
		}
		if len(fields) > 1 && fields[0] == "via" && (strings.HasPrefix(dst, "10.5.") || strings.HasPrefix(dst, "fc00:5:")) {
			routes = append(routes, dst+" via "+fields[1])
		}
	}
	slices.Sort(routes)
	return slices.Compact(routes), nil
}

// waitRoutes waits until it has routes to these networks and no others.
func (b *bird) waitRoutes(want ...string) {
	b.node.t.Helper()
	want = slices.Sorted(slices.Values(want))
	eventually(b.node.t, b.node.Name+" has learnt its routes", func() error {
		routes, err := b.routes()
		if err != nil {
			return err
		}
		if !slices.Equal(routes, want) {
			return fmt.Errorf("has %v, want %v", routes, want)
		}
		return nil
	})
}

// hops are the routes to the hosts' subnets by their own addresses.
func hops(t *testing.T, hosts ...*Host) (routes []string) {
	t.Helper()
	for _, h := range hosts {
		for _, text := range h.subnets() {
			p := netip.MustParsePrefix(text)
			for _, a := range h.Addrs {
				if a.Is4() == p.Addr().Is4() {
					routes = append(routes, fmt.Sprintf("%s via %s", p, a))
				}
			}
		}
	}
	return routes
}

// newRacks is a laboratory of a network of alloc on two segments, each with a router, which a third segment connects.
func newRacks(t *testing.T) (lab *Lab, racks [2]*Segment, routers [2]*Node) {
	t.Helper()
	lab = newLab(t, Stack{V4: true, V6: true})
	racks = [2]*Segment{lab.NewSegment(1), lab.NewSegment(2)}
	spine := lab.NewSegment(3)
	for i := range racks {
		routers[i] = lab.node(fmt.Sprintf("rack%d", i+1))
		routers[i].Sysctl("net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_forward=1")
		racks[i].Plug(routers[i], "eth0", gatewayNumber)
		spine.Plug(routers[i], "eth1", i+1)
	}
	lab.NewEtcd(racks[0])
	lab.StartEtcd()
	lab.Put(configKey, lab.Config(`{"Type":"alloc"}`))
	return lab, racks, routers
}

// startFRR starts FRR's zebra and bgpd with a configuration.
func startFRR(n *Node, conf string) {
	n.t.Helper()
	dir := n.t.TempDir()
	file := filepath.Join(dir, "frr.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		n.t.Fatal(err)
	}
	// It becomes the user frr.
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.Exec("chown", "frr:frr", dir)
	for _, daemon := range []string{"zebra", "bgpd"} {
		args := []string{"/usr/lib/frr/" + daemon, "-f", file, "-z", filepath.Join(dir, "zserv"), "-i", filepath.Join(dir, daemon+".pid"),
			"--vty_socket", dir, "-A", "127.0.0.1", "--log", "stdout"}
		if daemon == "bgpd" {
			args = append(args, "-p", "0")
		}
		n.Spawn("FRR's "+daemon+" on "+n.Name, nil, args...)
		eventually(n.t, daemon+" runs", func() error {
			_, err := os.Stat(filepath.Join(dir, daemon+".vty"))
			return err
		})
	}
}
