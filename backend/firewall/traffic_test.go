package firewall

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// site is a host that routes between two containers, each in a subnet of the overlay's network, one of Docker's, and the
// world.
type site struct{ host, container, peer, docker, world netns.NsHandle }

func newSite(t *testing.T) site {
	t.Helper()
	s := site{nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t)}
	for _, ns := range []netns.NsHandle{s.host, s.container, s.peer, s.docker, s.world} {
		// Only the host has anything to forward. Without detection of duplicates, addresses can be used at once.
		nstest.Sh(t, ns, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
	}
	for _, end := range []struct {
		ns     netns.NsHandle
		name   string
		v4, v6 string // the subnets but for their last part
	}{
		{s.container, "c1", "10.5.1", "fd00:5:0:1::"},
		{s.peer, "c2", "10.5.2", "fd00:5:0:2::"},
		{s.docker, "docker0", "172.17.0", "fd00:d::"},
		{s.world, "world", "192.0.2", "2001:db8::"},
	} {
		nstest.Sh(t, s.host, fmt.Sprintf(`ip link add %[1]s type veth peer name eth0 netns %[2]s
			ip link set %[1]s up
			ip addr add %[3]s.1/24 dev %[1]s
			ip addr add %[4]s1/64 dev %[1]s`, end.name, nstest.Path(end.ns), end.v4, end.v6))
		nstest.Sh(t, end.ns, fmt.Sprintf(`ip link set eth0 up
			ip addr add %[1]s.2/24 dev eth0
			ip addr add %[2]s2/64 dev eth0 nodad
			ip route add default via %[1]s.1
			ip route add default via %[2]s1`, end.v4, end.v6))
		serve(t, end.ns)
	}
	return s
}

// serve tells everyone who connects to port 7 in ns the address he comes from.
func serve(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	// Not "tcp": package net finds out once for all namespaces whether one socket serves both families.
	for _, network := range []string{"tcp4", "tcp6"} {
		var l net.Listener
		if err := rtnl.InNetns(ns, func() (err error) { l, err = net.Listen(network, ":7"); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
	}
}

// ask connects from ns to port 7 of ip and returns the address that the other side sees.
func ask(ctx context.Context, ns netns.NsHandle, ip string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var c net.Conn
	err := rtnl.InNetns(ns, func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(ip, "7"))
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	seen, err := io.ReadAll(c)
	return string(seen), err
}

// blocked fails the test where ns reaches ip.
func blocked(t *testing.T, ns netns.NsHandle, ip string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if seen, err := ask(ctx, ns, ip); err == nil {
		t.Errorf("%s was reached, from %s", ip, seen)
	}
}

// reached fails the test where ns does not reach ip, or ip does not see it come from the given address.
func reached(t *testing.T, ns netns.NsHandle, ip, from string) {
	t.Helper()
	if seen, err := ask(t.Context(), ns, ip); err != nil || seen != from {
		t.Errorf("%s sees %q, want %q; err %v", ip, seen, from, err)
	}
}

func TestMasquerade(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	reached(t, s.container, "192.0.2.2", "10.5.1.2") // the world knows a way back, or nothing would be seen
	reached(t, s.container, "2001:db8::2", "fd00:5:0:1::2")
	f := newFirewall(s.host)
	apply(t, f, 1, Masquerade{net4}, Masquerade{net6})
	reached(t, s.container, "192.0.2.2", "192.0.2.1")
	reached(t, s.container, "2001:db8::2", "2001:db8::1")
	reached(t, s.container, "10.5.2.2", "10.5.1.2")
	reached(t, s.container, "fd00:5:0:2::2", "fd00:5:0:1::2")
	reached(t, s.world, "10.5.1.2", "192.0.2.2")
	reached(t, s.host, "10.5.1.2", "10.5.1.1")
	apply(t, f, 1)
	reached(t, s.container, "192.0.2.2", "10.5.1.2")
}

// TestReplaceUnderTraffic changes the table all the time: no connection may slip out between the old and the new rules.
func TestReplaceUnderTraffic(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := newFirewall(s.host)
	other := Masquerade{netip.MustParsePrefix("10.6.0.0/16")}
	apply(t, f, 1, Masquerade{net4})
	done := make(chan int)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	go func() {
		changes := 0
		for ; ctx.Err() == nil; changes++ {
			want := []Rule{Masquerade{net4}, other}[:1+changes%2]
			if _, err := f.apply(t.Context(), want); err != nil {
				t.Error(err)
			}
		}
		done <- changes
	}()
	asked := 0
	for ; ctx.Err() == nil; asked++ {
		reached(t, s.container, "192.0.2.2", "192.0.2.1")
	}
	t.Logf("%d connections, %d changes", asked, <-done)
}

func TestAcceptOverDrop(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"nft", "legacy"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := variant(t, name)
			s := newSite(t)
			iptables := func(script string) string {
				return nstest.Sh(t, s.host, "PATH="+dir+":$PATH; for i in iptables ip6tables; do "+script+"; done")
			}
			pass := func() {
				t.Helper()
				reached(t, s.container, "10.5.2.2", "10.5.1.2")
				reached(t, s.container, "fd00:5:0:2::2", "fd00:5:0:1::2")
			}
			f := newFirewall(s.host)
			for i := range f.xt {
				f.xt[i].command = filepath.Join(dir, f.xt[i].command)
			}
			iptables("$i -P FORWARD DROP")
			before := iptables("$i -S")
			blocked(t, s.container, "10.5.2.2")
			blocked(t, s.container, "fd00:5:0:2::2")
			apply(t, f, 2, Accept{net4}, Accept{net6})
			pass()
			right := iptables("$i -S")
			apply(t, f, 0, Accept{net6}, Accept{net4})
			if diff := cmp.Diff(right, iptables("$i -S")); diff != "" {
				t.Errorf("applied twice (-want +got):\n%s", diff)
			}

			iptables("$i -F")
			blocked(t, s.container, "10.5.2.2")
			apply(t, f, 2, Accept{net4}, Accept{net6})
			pass()
			if diff := cmp.Diff(right, iptables("$i -S")); diff != "" {
				t.Errorf("healed (-want +got):\n%s", diff)
			}

			// What Docker does when it starts.
			iptables("$i -N DOCKER-USER; $i -N DOCKER-FORWARD; $i -A DOCKER-FORWARD -o c2 ! -i c2 -j DROP; $i -I FORWARD -j DOCKER-FORWARD; $i -I FORWARD -j DOCKER-USER")
			blocked(t, s.container, "10.5.2.2")
			apply(t, f, 2, Accept{net4}, Accept{net6})
			pass()
			iptables("$i -A DOCKER-USER -p tcp -j DROP")
			apply(t, f, 0, Accept{net4}, Accept{net6})
			blocked(t, s.container, "10.5.2.2") // the operator's word holds

			apply(t, f, 2)
			iptables("$i -D FORWARD 1; $i -D FORWARD 1; $i -F DOCKER-USER; $i -F DOCKER-FORWARD; $i -X DOCKER-USER; $i -X DOCKER-FORWARD")
			if diff := cmp.Diff(before, iptables("$i -S")); diff != "" {
				t.Errorf("removed (-want +got):\n%s", diff)
			}
		})
	}
}

// What is accepted on a host that drops all else is what is the overlay's: between its containers, out by the uplink, and
// what answers or was published. Docker's containers, and who is outside, reach no port that is not published, nor do the
// overlay's containers one of Docker's.
func TestAcceptIsTheOverlays(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nstest.Sh(t, s.host, `for i in iptables ip6tables; do $i -P FORWARD DROP; done
		iptables -t nat -A PREROUTING -d 192.0.2.1 -p tcp --dport 7 -j DNAT --to 10.5.1.2:7
		ip6tables -t nat -A PREROUTING -d 2001:db8::1 -p tcp --dport 7 -j DNAT --to [fd00:5:0:1::2]:7`)
	f := newFirewall(s.host)
	rules := []Rule{Accept{net4}, Accept{net6}, Uplink{net4, "world", false}, Uplink{net6, "world", false}}
	apply(t, f, 2, rules...)
	for _, tt := range []struct {
		from     netns.NsHandle
		to, seen string // "": it does not get there
	}{
		{s.container, "10.5.2.2", "10.5.1.2"},
		{s.peer, "fd00:5:0:1::2", "fd00:5:0:2::2"},
		{s.container, "192.0.2.2", "10.5.1.2"},
		{s.container, "2001:db8::2", "fd00:5:0:1::2"},
		{s.world, "192.0.2.1", "192.0.2.2"},
		{s.world, "2001:db8::1", "2001:db8::2"},
		{s.docker, "192.0.2.1", "172.17.0.2"},
		{s.docker, "2001:db8::1", "fd00:d::2"},
		{s.peer, "192.0.2.1", "10.5.2.2"},
		{s.container, "172.17.0.2", ""},
		{s.container, "fd00:d::2", ""},
		{s.docker, "10.5.1.2", ""},
		{s.docker, "fd00:5:0:1::2", ""},
		{s.world, "10.5.1.2", ""},
		{s.world, "fd00:5:0:1::2", ""},
	} {
		if tt.seen == "" {
			blocked(t, tt.from, tt.to)
		} else {
			reached(t, tt.from, tt.to, tt.seen)
		}
	}

	// Where there is no tunnel, the other hosts' own packets come by the uplink, with their own addresses.
	rules[2], rules[3] = Uplink{net4, "world", true}, Uplink{net6, "world", true}
	apply(t, f, 2, rules...)
	reached(t, s.world, "10.5.1.2", "192.0.2.2")
	reached(t, s.world, "fd00:5:0:1::2", "2001:db8::2")
	blocked(t, s.docker, "10.5.1.2")
	blocked(t, s.container, "172.17.0.2")
}
