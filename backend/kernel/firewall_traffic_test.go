package kernel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// site is a host that routes between two containers, each in a subnet of the overlay's network, and the world.
type site struct{ host, container, peer, world netns.NsHandle }

func newSite(t *testing.T) site {
	t.Helper()
	s := site{nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t)}
	for _, ns := range []netns.NsHandle{s.host, s.container, s.peer, s.world} {
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
	f := testFirewall(t, s.host)
	apply(t, f, Masquerade{net4}, Masquerade{net6})
	reached(t, s.container, "192.0.2.2", "192.0.2.1")
	reached(t, s.container, "2001:db8::2", "2001:db8::1")
	reached(t, s.container, "10.5.2.2", "10.5.1.2")
	reached(t, s.container, "fd00:5:0:2::2", "fd00:5:0:1::2")
	reached(t, s.world, "10.5.1.2", "192.0.2.2")
	reached(t, s.host, "10.5.1.2", "10.5.1.1")
	if err := f.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	reached(t, s.container, "192.0.2.2", "10.5.1.2")
}

// TestReplaceUnderTraffic changes the table all the time: no connection may slip out between the old and the new rules.
func TestReplaceUnderTraffic(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	f := testFirewall(t, s.host)
	other := Masquerade{netip.MustParsePrefix("10.6.0.0/16")}
	apply(t, f, Masquerade{net4})
	done := make(chan int)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	go func() {
		changes := 0
		for ; ctx.Err() == nil; changes++ {
			desired := []Object{Masquerade{net4}, other}[:1+changes%2]
			if err := f.apply(t.Context(), desired); err != nil {
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
			f := testFirewall(t, s.host)
			for i := range f.xt {
				f.xt[i].command = filepath.Join(dir, f.xt[i].command)
			}
			drifted := []string{f.xt[0].command + " chain OVERLAYD-FORWARD", f.xt[1].command + " chain OVERLAYD-FORWARD"}

			iptables("$i -P FORWARD DROP")
			before := iptables("$i -S")
			blocked(t, s.container, "10.5.2.2")
			blocked(t, s.container, "fd00:5:0:2::2")
			apply(t, f, Accept{net4}, Accept{net6})
			pass()
			drift(t, f)
			right := iptables("$i -S")
			apply(t, f, Accept{net6}, Accept{net4}, Accept{net4})
			if diff := cmp.Diff(right, iptables("$i -S")); diff != "" {
				t.Errorf("applied twice (-want +got):\n%s", diff)
			}

			iptables("$i -F")
			blocked(t, s.container, "10.5.2.2")
			drift(t, f, drifted...)
			apply(t, f, Accept{net4}, Accept{net6})
			pass()
			if diff := cmp.Diff(right, iptables("$i -S")); diff != "" {
				t.Errorf("healed (-want +got):\n%s", diff)
			}

			// What Docker does when it starts.
			iptables("$i -N DOCKER-USER; $i -N DOCKER-FORWARD; $i -A DOCKER-FORWARD -o c2 ! -i c2 -j DROP; $i -I FORWARD -j DOCKER-FORWARD; $i -I FORWARD -j DOCKER-USER")
			blocked(t, s.container, "10.5.2.2")
			drift(t, f, drifted...)
			apply(t, f, Accept{net4}, Accept{net6})
			pass()
			iptables("$i -A DOCKER-USER -p tcp -j DROP")
			drift(t, f)
			blocked(t, s.container, "10.5.2.2") // the operator's word holds

			if err := f.remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			iptables("$i -D FORWARD 1; $i -D FORWARD 1; $i -F DOCKER-USER; $i -F DOCKER-FORWARD; $i -X DOCKER-USER; $i -X DOCKER-FORWARD")
			if diff := cmp.Diff(before, iptables("$i -S")); diff != "" {
				t.Errorf("removed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFirewallChanged(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	f := testFirewall(t, ns)
	for i, x := range f.xt { // the legacy variant tells nobody
		f.xt[i].command = filepath.Join(variant(t, "nft"), x.command)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx) }()

	silent := func(what string) {
		t.Helper()
		select {
		case <-f.changed():
			t.Errorf("%s: reported", what)
		case <-time.After(10 * settle):
		}
	}
	desired := []Object{Masquerade{net4}, Accept{net4}}
	apply(t, f, desired...)
	silent("what apply itself did")
	nstest.Sh(t, ns, "nft add table inet foreign; iptables-nft -t nat -A POSTROUTING -j ACCEPT; iptables-nft -A FORWARD -j ACCEPT")
	silent("changes of others' rules")
	for _, script := range []string{
		"nft delete table inet overlayd",
		"nft flush ruleset",
		"nft add rule inet overlayd postrouting accept",
		"iptables-nft -F",
		"iptables-nft -I FORWARD -j DROP",
	} {
		nstest.Sh(t, ns, script)
		select {
		case <-f.changed():
		case <-time.After(time.Minute):
			t.Errorf("%s: not reported", script)
		}
		apply(t, f, desired...)
		silent("healing")
		drift(t, f)
	}

	// More at once than the socket holds.
	many := []byte("add table ip filter\nadd chain ip filter INPUT\n")
	for i := range 20000 {
		many = fmt.Appendf(many, "add rule ip filter INPUT tcp dport %d accept\n", i)
	}
	file := filepath.Join(t.TempDir(), "many")
	if err := os.WriteFile(file, append(many, "delete table inet overlayd\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	nstest.Sh(t, ns, "nft -f "+file)
	select {
	case <-f.changed():
	case <-time.After(time.Minute):
		t.Error("a burst: not reported")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}
