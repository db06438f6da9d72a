package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// path is a way between two nodes that is measured.
type path struct {
	name     string
	from, to *Node
	dst      netip.Addr
	hosts    []*Host // that stand between; none where they are the ends
	fast     [2]bool // the hosts whose fast path it takes
}

// The wire that is measured is a veth and nothing else: a bridge would have a share in every number.
const (
	wireLink = "eth1"
	wireV4   = "172.31.0.%d/24"
	wireV6   = "fd00:31::%d/64"
)

// joinWire connects two nodes.
func joinWire(a, b *Node, stack Stack) {
	a.t.Helper()
	a.Exec("ip", "link", "add", wireLink, "type", "veth", "peer", "name", wireLink, "netns", b.Name)
	for i, n := range []*Node{a, b} {
		n.Exec("ip", "link", "set", wireLink, "up")
		if stack.V4 {
			n.Exec("ip", "address", "add", fmt.Sprintf(wireV4, i+1), "dev", wireLink)
		}
		if stack.V6 {
			n.Exec("ip", "address", "add", fmt.Sprintf(wireV6, i+1), "dev", wireLink, "nodad")
		}
	}
}

// wireAddr is the address of the second node.
func wireAddr(stack Stack) netip.Addr {
	if stack.V6 {
		return netip.MustParsePrefix(fmt.Sprintf(wireV6, 2)).Addr()
	}
	return netip.MustParsePrefix(fmt.Sprintf(wireV4, 2)).Addr()
}

// newHostPath is host to host, with nothing on them.
func newHostPath(t testing.TB, name string, stack Stack) path {
	t.Helper()
	l := newLab(t, stack)
	a, b := l.node("a"), l.node("b")
	joinWire(a, b, stack)
	return path{name: name, from: a, to: b, dst: wireAddr(stack)}
}

// overlay is what a way from container to container is made of.
type overlay struct {
	name     string
	stack    Stack
	backend  string
	delegate map[string]any
	slow     [2]bool // the hosts whose fast path is off
	same     bool    // both containers are the first host's
	script   string  // of the shell, that both hosts run first
}

// newOverlayPath makes it. What programmed the way is frozen when it has: it stays as it is, the fast path with it, and
// neither daemons nor etcd use a CPU that is measured.
func newOverlayPath(t testing.TB, o overlay) path {
	t.Helper()
	l, wire := newWire(t, o.stack, o.backend)
	hosts := l.NewHosts(wire, 2)
	joinWire(hosts[0].Node, hosts[1].Node, o.stack)
	for i, h := range hosts {
		h.Exec("sh", "-ec", o.script)
		h.Start("--ip-masq", "--iface="+wireLink, "--fast-path="+map[bool]string{false: "auto", true: "off"}[o.slow[i]])
		h.SetDelegate(o.delegate)
	}
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(1)
	}
	to := hosts[1]
	if o.same {
		to = hosts[0]
	}
	p := betweenContainers(o.name, hosts[0], to)
	p.hosts = hosts
	for i, h := range hosts {
		if o.slow[i] {
			h.waitOff("off")
		} else if !o.same {
			p.fast[i] = true
			h.waitFast(1, 1, 0)
		}
		h.Daemon.Signal(syscall.SIGSTOP)
	}
	l.etcd.Kill()
	return p
}

// checkFast says whether what was measured took the way that it should have, all but the first packets of connections.
func (p path) checkFast(t testing.TB) {
	t.Helper()
	for i, h := range p.hosts {
		if h.Daemon == nil {
			continue // flannel's
		}
		h.Daemon.Signal(syscall.SIGCONT)
		packets := h.fastPath().Packets
		fast, slow := packets["sent"]+packets["received"], uint64(0)
		for way, n := range packets {
			if way != "sent" && way != "received" {
				slow += n
			}
		}
		if p.fast[i] && fast < 50*slow || !p.fast[i] && fast > 0 {
			t.Errorf("%s: %s counts %v, want the fast path taken: %t", p.name, h.Name, packets, p.fast[i])
		}
		h.Daemon.Signal(syscall.SIGSTOP)
	}
}

func betweenContainers(name string, a, b *Host) path {
	a.t.Helper()
	from, to := a.NewContainer(), b.NewContainer()
	eventually(from.t, name, func() error { return from.PingSize(to.Addrs[0], 1000) })
	return path{name: name, from: from.Node, to: to.Node, dst: to.Addrs[0], hosts: []*Host{a, b}}
}

// newFlannelPath is container to container over what flanneld programs with --ip-masq, made by hand.
func newFlannelPath(t testing.TB, name string) path {
	t.Helper()
	l := newLab(t, Stack{V4: true})
	wire := l.NewSegment(1)
	hosts := []*Host{l.flannelHost(wire, 11, "10.5.1.0/24"), l.flannelHost(wire, 12, "10.5.2.0/24")}
	joinWire(hosts[0].Node, hosts[1].Node, l.Stack)
	for i, h := range hosts {
		own, peer := i+1, 2-i
		h.Exec("sh", "-ec", fmt.Sprintf(`
			ip link add flannel.1 address 02:f1:a2:00:00:0%[1]d type vxlan id 1 local 172.31.0.%[1]d dev %[3]s dstport 8472 nolearning
			ip address add 10.5.%[1]d.0/32 dev flannel.1
			ip link set flannel.1 mtu 1450 up
			ip neighbour replace 10.5.%[2]d.0 lladdr 02:f1:a2:00:00:0%[2]d nud permanent dev flannel.1
			bridge fdb replace 02:f1:a2:00:00:0%[2]d dst 172.31.0.%[2]d dev flannel.1 self
			ip route replace 10.5.%[2]d.0/24 via 10.5.%[2]d.0 dev flannel.1 onlink`, own, peer, wireLink))
		h.flannelMasquerade(fmt.Sprintf("10.5.%d.0/24", own))
	}
	return betweenContainers(name, hosts[0], hosts[1])
}

// flannelMasquerade makes flannel's rules of iptables.
func (h *Host) flannelMasquerade(subnet string) {
	h.t.Helper()
	for line := range strings.Lines(fmt.Sprintf(`-t nat -N FLANNEL-POSTRTG
-t nat -A POSTROUTING -m comment --comment flanneld-masq -j FLANNEL-POSTRTG
-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment flanneld-masq -j RETURN
-t nat -A FLANNEL-POSTRTG -s %[1]s -d %[2]s -m comment --comment flanneld-masq -j RETURN
-t nat -A FLANNEL-POSTRTG -s %[2]s -d %[1]s -m comment --comment flanneld-masq -j RETURN
-t nat -A FLANNEL-POSTRTG ! -s %[2]s -d %[1]s -m comment --comment flanneld-masq -j RETURN
-t nat -A FLANNEL-POSTRTG -s %[2]s ! -d 224.0.0.0/4 -m comment --comment flanneld-masq -j MASQUERADE --random-fully
-t nat -A FLANNEL-POSTRTG ! -s %[2]s -d %[2]s -m comment --comment flanneld-masq -j MASQUERADE --random-fully
-N FLANNEL-FWD
-A FORWARD -m comment --comment flanneld-forward -j FLANNEL-FWD
-A FLANNEL-FWD -s %[2]s -m comment --comment flanneld-forward -j ACCEPT
-A FLANNEL-FWD -d %[2]s -m comment --comment flanneld-forward -j ACCEPT
`, subnet, overlayV4)) {
		h.Exec(append([]string{"iptables"}, strings.Fields(line)...)...)
	}
}
