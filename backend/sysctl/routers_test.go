package sysctl

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// advertise sends a router advertisement (RFC 4861, section 4.2) from each of the links in ns until the test ends.
func advertise(t *testing.T, ns netns.NsHandle, links ...string) {
	t.Helper()
	var fd int
	err := rtnl.InNetns(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
	go func() {
		defer close(done)
		for {
			for _, link := range links {
				var index int
				_ = rtnl.InNetns(ns, func() error {
					if i, err := net.InterfaceByName(link); err == nil {
						index = i.Index
					}
					return nil
				})
				// Type, code, checksum, hop limit, flags, a lifetime of 30 minutes, two timers. Whether it comes is seen there.
				ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0}
				to := &unix.SockaddrInet6{ZoneId: uint32(index), Addr: [16]byte{0xff, 0x02, 15: 1}}
				_ = unix.Sendto(fd, ra, 0, to)
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
}

// A host that is made a router keeps the default routes that it hears of, on every link that had them, and goes on
// hearing. It hears none where it was told not to.
func TestForwardingKeepsDefaultRoutes(t *testing.T) {
	t.Parallel()
	ns, peer := nstest.New(t), nstest.New(t)
	nstest.Sh(t, peer, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.forwarding=1")
	nstest.Sh(t, ns, "ip link set lo up")
	plug := func(links ...string) {
		for _, l := range links {
			nstest.Sh(t, ns, fmt.Sprintf("ip link add %s type veth peer name r%[1]s netns %s", l, nstest.Path(peer)))
			nstest.Sh(t, peer, "ip link set r"+l+" up")
			nstest.Sh(t, ns, "ip link set "+l+" up")
		}
	}
	plug("eth0", "eth1", "off", "router")
	nstest.Sh(t, ns, "ip address add 2001:db8::1/64 dev eth0 nodad; sysctl -qw net.ipv6.conf.off.accept_ra=0 net.ipv6.conf.router.forwarding=1")
	defaults := func() string {
		var links []string
		for _, l := range []string{"eth0", "eth1", "late", "off", "router", "told"} {
			if out := nstest.Sh(t, ns, "ip -6 route show default proto ra | grep -o 'dev "+l+" ' || true"); out != "" {
				links = append(links, l)
			}
		}
		return strings.Join(links, " ")
	}
	until := func(what, want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); defaults() != want; {
			if time.Now().After(deadline) {
				t.Fatalf("%s: default routes by %q, want %q", what, defaults(), want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	advertise(t, peer, "reth0", "reth1", "roff", "rrouter", "rlate", "rtold")
	until("before", "eth0 eth1")

	c := start(t, ns)
	c.Set("self", []Param{{Name: Forwarding6, Value: "1"}})
	<-c.Applied()
	if got := defaults(); got != "eth0 eth1" {
		t.Errorf("right after forwarding was turned on there are default routes by %q", got)
	}
	plug("late", "told")
	nstest.Sh(t, ns, "sysctl -qw net.ipv6.conf.told.accept_ra=0 net.ipv6.conf.eth1.accept_ra=0; ip -6 route flush default proto ra")
	until("after", "eth0 late")
	// What others set stays, also when forwarding is healed.
	nstest.Sh(t, ns, "sysctl -qw net.ipv6.conf.all.forwarding=0")
	healed(t, c, 1)
	const values = "cd /proc/sys/net/ipv6/conf; grep . default/accept_ra eth0/accept_ra eth1/accept_ra late/accept_ra off/accept_ra router/accept_ra told/accept_ra"
	want := "default/accept_ra:2 eth0/accept_ra:2 eth1/accept_ra:0 late/accept_ra:2 off/accept_ra:0 router/accept_ra:1 told/accept_ra:0"
	if got := oneBlank(nstest.Sh(t, ns, values)); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// With IPv6 the host gives back what was set for it.
	c.Set("self", nil)
	for c.Status().Pending {
		<-c.Changed()
	}
	if got := oneBlank(nstest.Sh(t, ns, "cd /proc/sys/net/ipv6/conf; cat all/forwarding default/accept_ra eth0/accept_ra eth1/accept_ra")); got != "0 1 1 0" {
		t.Errorf("given back as %s, want 0 1 1 0", got)
	}
}
