package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// Whatever somebody does to our objects by hand is undone, counted exactly, and logged in a line.
func TestHeal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		script func(o overlay) string
		healed map[Kind]int
	}{
		{"neighbour removed", func(o overlay) string {
			return fmt.Sprintf("ip neighbour del %s dev %s", o.subnet(1).Addr(), o.link.Name)
		}, map[Kind]int{KindNeighbour: 1}},
		{"neighbour changed", func(o overlay) string {
			return fmt.Sprintf("ip neighbour replace %s lladdr 02:09:09:09:09:09 nud permanent dev %s", o.subnet(1).Addr(), o.link.Name)
		}, map[Kind]int{KindNeighbour: 1}},
		{"neighbour no longer permanent", func(o overlay) string {
			return fmt.Sprintf("ip neighbour replace %s lladdr %s nud reachable dev %s", o.subnet(1).Addr(), peerMAC(1), o.link.Name)
		}, map[Kind]int{KindNeighbour: 1}},
		{"FDB entry removed", func(o overlay) string {
			return fmt.Sprintf("bridge fdb del %s dev %s", peerMAC(1), o.link.Name)
		}, map[Kind]int{KindFDB: 1}},
		{"FDB entry changed", func(o overlay) string {
			return fmt.Sprintf("bridge fdb replace %s dev %s dst %s self permanent", peerMAC(1), o.link.Name, o.vtep(99))
		}, map[Kind]int{KindFDB: 1}},
		{"route removed", func(o overlay) string {
			return fmt.Sprintf("ip route del %s", o.subnet(1))
		}, map[Kind]int{KindRoute: 1}},
		{"route changed", func(o overlay) string {
			return fmt.Sprintf("ip route replace %s via %s dev %s onlink proto %d metric %d",
				o.subnet(1), o.subnet(2).Addr(), o.link.Name, RouteProtocol, metric(o.subnet(1)))
		}, map[Kind]int{KindRoute: 1}},
		{"neighbour added", func(o overlay) string {
			return fmt.Sprintf("ip neighbour add %s lladdr %s nud permanent dev %s", o.subnet(9).Addr(), peerMAC(1), o.link.Name)
		}, map[Kind]int{KindNeighbour: 1}},
		{"MAC changed", func(o overlay) string { // the kernel forgets the neighbours then
			return fmt.Sprintf("ip link set %s address 02:09:09:09:09:09", o.link.Name)
		}, map[Kind]int{KindLink: 1, KindNeighbour: 3}},
		{"MTU changed", func(o overlay) string {
			return fmt.Sprintf("ip link set %s mtu 1300", o.link.Name)
		}, map[Kind]int{KindLink: 1}},
		{"ARP turned on", func(o overlay) string { // the kernel forgets the neighbours then
			return fmt.Sprintf("ip link set %s arp on", o.link.Name)
		}, map[Kind]int{KindLink: 1, KindNeighbour: 3}},
		{"learning turned on", func(o overlay) string {
			return fmt.Sprintf("ip link set %s type vxlan learning", o.link.Name)
		}, map[Kind]int{KindLink: 1}},
		{"renamed", func(o overlay) string {
			return fmt.Sprintf("printf 'link set %s down\nlink set %[1]s name else\nlink del else\n' | ip -batch -", o.link.Name)
		}, map[Kind]int{KindLink: 1, KindAddress: 1, KindNeighbour: 3, KindFDB: 3, KindRoute: 3}},
		{"deleted", func(o overlay) string {
			return fmt.Sprintf("ip link del %s", o.link.Name)
		}, map[Kind]int{KindLink: 1, KindAddress: 1, KindNeighbour: 3, KindFDB: 3, KindRoute: 3}},
		{"made anew with another VNI", func(o overlay) string {
			return fmt.Sprintf("printf 'link del %s\nlink add %[1]s type vxlan id 7 dstport 8472 local %[2]s dev eth0\n' | ip -batch -", o.link.Name, o.link.Local)
		}, map[Kind]int{KindLink: 1, KindAddress: 1, KindNeighbour: 3, KindFDB: 3, KindRoute: 3}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				r := startWith(t, o, 3)
				r.unseen(test.script(o))
				r.healedExactly(test.healed)
				r.has(o, 1, 2, 3)
				if lines := r.log.lines("msg=healed"); len(lines) != 1 {
					t.Errorf("log: %q, want one line", lines)
				}
			})
		})
	}
}

// With its last address, IPv4 loses more on a link than IPv6: all comes back.
func TestHealAddress(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 3)
		ns := r.ns
		nstest.Sh(t, ns, fmt.Sprintf("ip address del %s dev %s", o.own.Prefix, o.link.Name))
		r.healedTo(KindAddress, 1)
		if o.link.Local.Is4() {
			r.healedTo(KindRoute, 3)
		}
		r.has(o, 1, 2, 3)

		o.own.Prefix = netip.PrefixFrom(o.subnet(99).Addr(), o.own.Prefix.Bits())
		r.Update("", []Claim{{"self", o.self()}})
		r.inStep()
		r.has(o, 1, 2, 3)
	})
}

// A route of one kind becomes one of the other in place.
func TestRouteTurns(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 2)
		ns := r.ns
		direct := Route{Dst: o.subnet(2), Via: o.hostgw(9), Link: "eth0"}
		for range 2 {
			r.Update("", []Claim{{"peer2", []Object{direct}}})
			r.inStep()
			if out := nstest.Sh(t, ns, fmt.Sprintf("{ ip -4 route show proto 111; ip -6 route show proto 111; } | grep '^%s '", direct.Dst)); !strings.Contains(out, "dev eth0") || strings.Count(out, "\n") != 1 {
				t.Errorf("direct: %q", out)
			}
			r.Update("", []Claim{{"peer2", o.peer(2)}})
			r.inStep()
			r.has(o, 1, 2)
		}
	})
}

// What the kernel drops with a link that goes down differs with family and version: all comes back.
func TestHealLinkDown(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 3)
		ns := r.ns
		nstest.Sh(t, ns, "ip link set down dev "+o.link.Name)
		r.healedTo(KindLink, 1)
		r.has(o, 1, 2, 3)
	})
}

// Routes over the underlay disappear with it, for IPv4 in silence. They wait for it and come back.
func TestHealUnderlay(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		r := start(t, ns)
		route := Route{Dst: o.subnet(1), Via: o.hostgw(2), Link: "eth0"}
		r.Replace("", []Claim{{"peer1", []Object{route}}})
		r.inStep()
		nstest.Sh(t, ns, "ip link del eth0")
		r.until("pending", func(s Status) bool { return s.Pending == 1 && !s.InStep && len(s.Failed) == 0 })
		nstest.Sh(t, ns, strings.Replace(nstest.LAN, "ip link set lo up", "", 1))
		r.inStep()
		if out := nstest.Sh(t, ns, "ip route show proto 111; ip -6 route show proto 111"); !strings.Contains(out, route.Via.String()) {
			t.Errorf("routes: %q", out)
		}
		nstest.Sh(t, ns, "ip link set down dev eth0; sleep 0.7; ip link set up dev eth0; ip address replace 2001:db8::1/64 dev eth0 nodad")
		r.inStep()
	})
}

// The kernel has no room for a notification: all is looked at.
func TestLostNotifications(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 200)
		ns := r.ns
		r.watch.mu.Lock() // nobody reads the socket from now on
		raw, _ := r.watch.conn.SyscallConn()
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
		nstest.Sh(t, ns, "ip route flush proto 111; ip -6 route flush proto 111")
		r.watch.mu.Unlock()
		r.healedTo(KindRoute, 200)
		if lines := r.log.lines("notifications of the kernel were lost"); len(lines) == 0 {
			t.Error("nothing was lost: the test tests nothing")
		}
	})
}
