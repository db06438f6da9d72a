package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestUnderlayOfVLANAndBond has hosts whose way to each other is a VLAN, a bond, and a VLAN of a bond.
func TestUnderlayOfVLANAndBond(t *testing.T) {
	t.Parallel()
	needs(t, "VLANs and bonds", "ip link add bond0 type bond; ip link add link bond0 name bond0.5 type vlan id 5")
	for _, c := range []struct {
		name, dev string
		make      func(s *Segment, n *Node, number int)
	}{
		{"VLAN", "eth0.5", func(_ *Segment, n *Node, _ int) {
			n.Exec("ip", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
		}},
		{"bond", "bond0", (*Segment).bond},
		{"VLAN of a bond", "bond0.5", func(s *Segment, n *Node, number int) {
			s.bond(n, number)
			n.Exec("ip", "link", "add", "link", "bond0", "name", "bond0.5", "type", "vlan", "id", "5")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lab := newLab(t, both)
			wire := lab.NewSegment(1)
			move := func(n *Node, number int) {
				c.make(wire, n, number)
				n.Exec("ip", "address", "flush", "dev", "eth0", "scope", "global")
				n.Exec("sh", "-c", "ip route flush default; ip -6 route flush default") // IPv6's stay without the address
				n.Exec("ip", "link", "set", c.dev, "up")
				wire.Address(n, c.dev, number)
				wire.DefaultRoute(n, c.dev)
			}
			lab.NewEtcd(wire)
			move(lab.Etcd, etcdNumber)
			lab.StartEtcd()
			lab.Put(configKey, lab.Config(`{"Type":"vxlan"}`))
			hosts := lab.NewHosts(wire, 2)
			for i, h := range hosts {
				move(h.Node, 11+i)
			}
			startAll(t, hosts)
			a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
			reach(t, a, b, 1430)
			if show := hosts[0].Exec("ip", "-d", "link", "show", "overlay.1"); !strings.Contains(show, " dev "+c.dev+" ") {
				t.Errorf("the link is over another: %s", show)
			}
			if strings.Contains(c.name, "bond") {
				key := hosts[0].key()
				wire.Exec("ip", "link", "set", "p11", "down") // the active one
				eventually(t, "packets pass by the bond's other link", func() error { return pingAll(a, b) })
				hosts[0].waitWell()
				if now := hosts[0].key(); now != key {
					t.Errorf("the lease is %s, want %s as before", now, key)
				}
			}
			lab.change(hosts, `{"Type":"host-gw"}`, "dev "+c.dev)
			eventually(t, "packets pass without a tunnel", func() error { return pingAll(a, b) })
		})
	}
}

// bond makes of eth0 and another link to the segment one that uses the other when the first has no carrier.
func (s *Segment) bond(n *Node, number int) {
	s.t.Helper()
	other := fmt.Sprintf("q%d", number)
	s.Exec("ip", "link", "add", other, "type", "veth", "peer", "name", "eth1", "netns", n.Name)
	s.Exec("ip", "link", "set", other, "master", "br0", "up")
	n.Exec("ip", "link", "add", "bond0", "type", "bond", "mode", "active-backup", "miimon", "50")
	for _, dev := range []string{"eth0", "eth1"} {
		n.Exec("ip", "link", "set", dev, "down")
		n.Exec("ip", "link", "set", dev, "master", "bond0")
		n.Exec("ip", "link", "set", dev, "up")
	}
	n.Exec("ip", "link", "set", "bond0", "up")
}
