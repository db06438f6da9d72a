package integration

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// backends are the configurations that every stack is tried with. overhead is what the backend takes from the
// underlay's 1500 bytes over IPv4 and over IPv6.
var backends = []struct {
	Name, Config           string
	OverheadV4, OverheadV6 int
}{
	{"vxlan", `{"Type":"vxlan"}`, 50, 70},
	{"host-gw", `{"Type":"host-gw"}`, 0, 0},
	{"wireguard", `{"Type":"wireguard"}`, 80, 80},
}

func TestContainersReachEachOther(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		for _, s := range stacks {
			t.Run(b.Name+"/"+s.Name, func(t *testing.T) {
				t.Parallel()
				lab, wire := newWire(t, s.Stack, b.Config)
				hosts := lab.NewHosts(wire, 3)
				startAll(t, hosts, "--ip-masq")
				var containers []*Container
				for _, h := range hosts {
					containers = append(containers, h.NewContainer())
				}
				mtu := 1500 - b.OverheadV4
				if s.V6 {
					mtu = 1500 - b.OverheadV6 // one link for both families, so the smaller one
				}
				for _, from := range containers {
					for _, to := range containers {
						if from != to {
							reach(t, from, to, mtu)
						}
					}
				}
				for _, h := range hosts {
					noFragments(t, h)
				}
			})
		}
	}
}

// reach checks one way between two containers, in each family: the largest packet passes and one byte more does
// not, and a TCP transfer arrives from the address that the sender has.
func reach(t *testing.T, from, to *Container, mtu int) {
	t.Helper()
	for i, dst := range to.Addrs {
		// The first packet waits for the neighbours of hosts and routers on the wire, which is not the overlay's doing.
		eventually(t, fmt.Sprintf("%s reaches %s", from.Name, dst), func() error { return from.PingSize(dst, 100) })
		// On a machine that is busy a process may carry an answer later than ping waits for it.
		eventually(t, fmt.Sprintf("the largest packet passes to %s", dst), func() error { return from.PingSize(dst, mtu) })
		if err := from.PingSize(dst, mtu+1); err == nil {
			t.Errorf("a packet of %d bytes passes to %s, want at most %d", mtu+1, dst, mtu)
		}
		seen, err := from.Transfer(to.Node, dst, 4<<20)
		if err != nil {
			t.Errorf("transfer from %s to %s: %v", from.Name, dst, err)
		} else if seen != from.Addrs[i] {
			t.Errorf("%s sees %s, want the container's own address %s", to.Name, seen, from.Addrs[i])
		}
	}
}

// noFragments checks that the host has never cut a packet in pieces: the MTU is right outside as well.
func noFragments(t testing.TB, h *Host) {
	t.Helper()
	for _, c := range []struct{ file, name string }{{"snmp", "FragCreates"}, {"snmp6", "Ip6FragCreates"}} {
		if n := procCounter(t, h.Exec("cat", "/proc/net/"+c.file), c.name); n != "0" {
			t.Errorf("%s has made %s fragments (%s), want none", h.Name, n, c.name)
		}
	}
}

// procCounter finds a counter in the text of /proc/net/snmp or /proc/net/snmp6.
func procCounter(t testing.TB, text, name string) string {
	t.Helper()
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 2 && fields[0] == name {
			return fields[1]
		}
		for i, f := range names {
			if f == name && len(fields) == len(names) {
				return fields[i]
			}
		}
		names = fields
	}
	t.Fatalf("no counter %s", name)
	return ""
}

func TestMasquerade(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		for _, masq := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/ip-masq=%t", b.Name, masq), func(t *testing.T) {
				t.Parallel()
				lab, wire := newWire(t, Stack{V4: true, V6: true}, b.Config)
				masquerades(t, lab, wire, masq)
			})
		}
	}
}

// masquerades checks which addresses containers are seen from, inside the overlay and outside.
func masquerades(t *testing.T, lab *Lab, wire *Segment, masq bool) {
	t.Helper()
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, fmt.Sprintf("--ip-masq=%t", masq))
	// The bridge plugin masquerades where overlayd does not; that is not what is looked at here.
	hosts[0].SetDelegate(map[string]any{"isDefaultGateway": true, "ipMasq": false})
	c, peer := hosts[0].NewContainer(), hosts[1].NewContainer()
	world := lab.NewWorld(wire, 200)
	for i, a := range wire.Addrs(200) {
		world.Exec("ip", "route", "add", c.Addrs[i].String(), "via", hosts[0].Addrs[i].String())
		want := c.Addrs[i]
		if masq {
			want = hosts[0].Addrs[i]
		}
		seesFrom(t, c, world, a.Addr(), want)
		seesFrom(t, c, peer.Node, peer.Addrs[i], c.Addrs[i])
	}
	fromOutside(t, hosts[0], c)
}

// fromOutside checks that a host of the overlay reaches a container of its own.
func fromOutside(t *testing.T, h *Host, c *Container) {
	t.Helper()
	for _, a := range c.Addrs {
		if _, err := h.Transfer(c.Node, a, 1<<10); err != nil {
			t.Errorf("from the host to its container %s: %v", a, err)
		}
	}
}

// seesFrom checks the source address that a receiver sees a container's packets come from.
func seesFrom(t *testing.T, from *Container, to *Node, dst, want netip.Addr) {
	t.Helper()
	seen, err := from.Transfer(to, dst, 1<<10)
	if err != nil {
		t.Errorf("from %s to %s: %v", from.Name, dst, err)
	} else if seen != want {
		t.Errorf("%s sees %s, want %s", dst, seen, want)
	}
}

// NewWorld makes a node of the segment that is no host of the overlay.
func (l *Lab) NewWorld(s *Segment, number int) *Node {
	l.t.Helper()
	n := l.node(fmt.Sprintf("world%d", number))
	s.Plug(n, "eth0", number)
	return n
}

func TestHostReachesRemoteContainer(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts, "--ip-masq")
	c := hosts[1].NewContainer()
	for _, a := range c.Addrs {
		if _, err := hosts[0].Transfer(c.Node, a, 1<<20); err != nil {
			t.Errorf("from a host to a remote container %s: %v", a, err)
		}
	}
}

func TestForwardPolicyDrop(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	for _, h := range hosts {
		h.Exec("iptables", "-P", "FORWARD", "DROP") // as Docker does
		h.Exec("ip6tables", "-P", "FORWARD", "DROP")
	}
	startAll(t, hosts, "--ip-masq")
	a, b, c := hosts[0].NewContainer(), hosts[1].NewContainer(), hosts[1].NewContainer()
	for _, pair := range [][2]*Container{{a, b}, {b, a}, {b, c}} {
		for _, dst := range pair[1].Addrs {
			if err := pair[0].PingSize(dst, 100); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSubnetFile(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true, V6: true}, `{"Type":"host-gw"}`)
	h := lab.NewHost(wire, 11)
	h.Start("--ip-masq")
	h.WaitReady()
	got, err := os.ReadFile(h.SubnetFile())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(got)) {
		name, _, _ := strings.Cut(line, "=")
		names = append(names, name)
	}
	want := "FLANNEL_NETWORK FLANNEL_SUBNET FLANNEL_IPV6_NETWORK FLANNEL_IPV6_SUBNET FLANNEL_MTU FLANNEL_IPMASQ"
	if strings.Join(names, " ") != want {
		t.Errorf("subnet.env has\n%swant the lines %s", got, want)
	}
	for _, line := range []string{"FLANNEL_NETWORK=10.5.0.0/16", "FLANNEL_MTU=1500", "FLANNEL_IPMASQ=true"} {
		if !strings.Contains(string(got), line+"\n") {
			t.Errorf("subnet.env has no line %s:\n%s", line, got)
		}
	}
}
