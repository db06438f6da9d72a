package enforce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// site is a host with two containers on its bridge, a and b, and a peer's container that it routes to.
type site struct{ host, a, b, peer netns.NsHandle }

// newSite makes one whose containers answer TCP and UDP at ports 80 and 81. The bridge's traffic passes no rules unless it is
// switched on for it alone.
func newSite(t testing.TB) site {
	t.Helper()
	s := site{nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t)}
	unseen := os.Getenv(unseenEnv) != ""
	if !unseen {
		exec.Command("modprobe", "br_netfilter").Run() // where it is a module
	}
	exec.Command("modprobe", "nfnetlink_log").Run()
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		nstest.Sh(t, s.host, "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
		if unseen {
			nstest.Sh(t, s.host, "mount -t tmpfs none /proc/sys/net/bridge")
		}
	}
	nstest.Sh(t, s.host, `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
		ip link set lo up
		ip link add br0 type bridge
		ip link set br0 up
		ip addr add 10.5.1.1/24 dev br0
		ip addr add fd00:5:0:1::1/64 dev br0 nodad`)
	for _, end := range []struct {
		ns         netns.NsHandle
		name, host string
		v4, v6     string
	}{
		{s.a, "ca", "ip link set ca master br0", "10.5.1.2", "fd00:5:0:1::2"},
		{s.b, "cb", "ip link set cb master br0", "10.5.1.3", "fd00:5:0:1::3"},
		{s.peer, "peer", "ip addr add 10.5.2.1/24 dev peer; ip addr add fd00:5:0:2::1/64 dev peer nodad", "10.5.2.2", "fd00:5:0:2::2"},
	} {
		nstest.Sh(t, s.host, fmt.Sprintf("ip link add %[1]s type veth peer name eth0 netns %[2]s; ip link set %[1]s up; %[3]s", end.name, nstest.Path(end.ns), end.host))
		nstest.Sh(t, end.ns, fmt.Sprintf(`
			sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
			ip link set lo up; ip link set eth0 up
			ip addr add %[1]s/24 dev eth0; ip addr add %[3]s/64 dev eth0 nodad
			ip route add default via %[2]s; ip route add default via %[4]s`,
			end.v4, end.v4[:strings.LastIndex(end.v4, ".")]+".1", end.v6, end.v6[:strings.LastIndex(end.v6, ":")]+":1"))
	}
	for _, ns := range []netns.NsHandle{s.host, s.a, s.b, s.peer} {
		for _, port := range []string{":80", ":81"} {
			serve(t, ns, port)
		}
	}
	return s
}

// serve echoes what comes.
func serve(t testing.TB, ns netns.NsHandle, port string) {
	t.Helper()
	for _, v := range []string{"4", "6"} {
		var l net.Listener
		var p net.PacketConn
		err := rtnl.InNetns(ns, func() (err error) {
			if l, err = net.Listen("tcp"+v, port); err == nil {
				p, err = net.ListenPacket("udp"+v, port)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); p.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); io.Copy(c, c) }()
			}
		}()
		go func() {
			for buf := make([]byte, 4<<10); ; {
				n, from, err := p.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					p.WriteTo(buf[:n], from)
				}
			}
		}()
	}
}

// dial connects from ns.
func dial(ctx context.Context, ns netns.NsHandle, network, addr string) (c net.Conn, err error) {
	err = rtnl.InNetns(ns, func() (err error) { c, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
	return c, err
}

// patience is how long an answer may take. Nothing that is let pass takes as long.
const patience = time.Second

// ask tells whether the other side does. Network is tcp, udp, or icmp, which has no port.
func ask(ns netns.NsHandle, network, ip, port string, within time.Duration) error {
	if network == "icmp" {
		return rtnl.InNetns(ns, func() error { return exec.Command("ping", "-c1", "-W1", ip).Run() })
	}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	c, err := dial(ctx, ns, network, net.JoinHostPort(ip, port))
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c, within)
}

// echo sends and receives.
func echo(c net.Conn, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

// probe is something that is to get there, or not.
type probe struct {
	from    netns.NsHandle
	network string // with what ip and port: tcp 10.5.1.2 80
	pass    bool
}

// probes asks all of them at once.
func probes(t *testing.T, what string, all []probe) {
	t.Helper()
	var done sync.WaitGroup
	for _, p := range all {
		done.Go(func() {
			words := append(strings.Fields(p.network), "")
			within := patience
			if p.pass { // a busy machine is no reason for a verdict
				within = 10 * patience
			}
			err := ask(p.from, words[0], words[1], words[2], within)
			if p.pass != (err == nil) {
				t.Errorf("%s: %s from %d: %v", what, p.network, p.from, err)
			}
		})
	}
	done.Wait()
}

// both are probes over both families.
func both(from netns.NsHandle, network, v4, v6, port string, pass bool) []probe {
	return []probe{{from, network + " " + v4 + " " + port, pass}, {from, network + " " + v6 + " " + port, pass}}
}
