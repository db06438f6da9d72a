package enforce

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/policy/compile"
)

// Ports of the host that are containers': whoever comes is judged by his own address, at the container's port, and a container
// always reaches itself.
func TestPublishedPorts(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nstest.Sh(t, s.host, `bridge link set dev ca hairpin on
nft -f - <<'end'
table inet nat {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		ip daddr 10.5.1.1 meta l4proto { tcp, udp } th dport { 8080, 8081 } dnat ip to 10.5.1.2 : th dport map { 8080 : 80, 8081 : 81 }
		ip6 daddr fd00:5:0:1::1 meta l4proto { tcp, udp } th dport { 8080, 8081 } dnat ip6 to [fd00:5:0:1::2] : th dport map { 8080 : 80, 8081 : 81 }
	}
	chain output {
		type nat hook output priority -100;
		ip daddr 10.5.1.1 tcp dport 8081 dnat ip to 10.5.1.2:81
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr 10.5.1.2 ip daddr 10.5.1.2 masquerade
		ip6 saddr fd00:5:0:1::2 ip6 daddr fd00:5:0:1::2 masquerade
	}
}
end`)
	bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": tcp80(b4, b6, peer4, peer6), "e1": nil},
		Set:  isolate("i1", "e1", a4, a6),
	})
	probes(t, "published", slices.Concat(
		both(s.peer, "tcp", "10.5.1.1", "fd00:5:0:1::1", "8080", true),
		both(s.peer, "tcp", "10.5.1.1", "fd00:5:0:1::1", "8081", false),
		both(s.peer, "udp", "10.5.1.1", "fd00:5:0:1::1", "8080", false),
		both(s.b, "tcp", "10.5.1.1", "fd00:5:0:1::1", "8080", true),
		both(s.b, "tcp", "10.5.1.1", "fd00:5:0:1::1", "8081", false),
		both(s.a, "tcp", "10.5.1.1", "fd00:5:0:1::1", "8081", true), // itself, though it may send nothing and none but b may come
		[]probe{{s.host, "tcp 10.5.1.1 8081", true}, {s.a, "tcp 10.5.1.3 80", false}}))
}

// Fragments go with their first one.
func TestFragments(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": {{From: b4, To: b4, Proto: 17, First: 80, Last: 80}, {From: b6, To: b6, Proto: 17, First: 80, Last: 80},
			{From: peer4, To: peer4, Proto: 17, First: 80, Last: 80}, {From: peer6, To: peer6, Proto: 17, First: 80, Last: 80}}},
		Set: isolate("i1", "", a4, a6),
	})
	for _, from := range []netns.NsHandle{s.b, s.peer} {
		for _, to := range []netip.Addr{a4, a6} {
			for port, pass := range map[string]bool{"80": true, "81": false} {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				c, err := dial(ctx, from, "udp", net.JoinHostPort(to.String(), port))
				if err != nil {
					t.Fatal(err)
				}
				sent := bytes.Repeat([]byte("fragment"), 500)
				c.SetDeadline(time.Now().Add(patience / 2))
				c.Write(sent)
				got := make([]byte, 8<<10)
				n, err := c.Read(got)
				if (err == nil && bytes.Equal(got[:n], sent)) != pass {
					t.Errorf("%d to %v port %s: %d bytes, %v", from, to, port, n, err)
				}
				c.Close()
				cancel()
			}
		}
	}
}

// ICMP errors of what an isolated container may do come to it; others do not.
func TestICMPErrors(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": nil},
		Set:  isolate("i1", "", a4, a6),
	})
	for _, to := range []string{"10.5.1.3", "fd00:5:0:1::3", "10.5.2.2", "fd00:5:0:2::2"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := dial(ctx, s.a, "udp", net.JoinHostPort(to, "7")) // where nobody is
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("hello"))
		if _, err := c.Read(make([]byte, 5)); err == nil || !strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()) {
			t.Errorf("%s: %v", to, err)
		}
		c.Close()
		cancel()
	}
	// Too long for a link behind the host.
	nstest.Sh(t, s.host, "ip link set peer mtu 1300; sysctl -qw net.ipv6.conf.peer.mtu=1300")
	for _, to := range []string{"10.5.2.2", "fd00:5:0:2::2"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := dial(ctx, s.a, "tcp", net.JoinHostPort(to, "80"))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		sent := bytes.Repeat([]byte("12345678"), 2000)
		go c.Write(sent)
		if _, err := io.ReadFull(c, make([]byte, len(sent))); err != nil {
			t.Errorf("%s: %v", to, err)
		}
		c.Close()
		cancel()
	}
	packets, err := Dropped(s.host, "")
	if err != nil || packets[deniedIn] > 0 {
		t.Errorf("%v dropped, %v", packets, err)
	}
}

// Protocols without ports pass through rules without ports only.
func TestProtocols(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	table := bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": {{Proto: 6}, {Proto: 17}, {Proto: 6, First: 1, Last: 65535}, {Proto: 17, First: 1, Last: 65535}}},
		Set:  isolate("i1", "", a4, a6),
	})
	arrives := func() bool {
		var in *net.IPConn
		inNS(t, s.a, func() (err error) { in, err = net.ListenIP("ip4:47", nil); return err })
		defer in.Close()
		inNS(t, s.b, func() error {
			out, err := net.DialIP("ip4:47", nil, &net.IPAddr{IP: a4.AsSlice()})
			if err == nil {
				_, err = out.Write([]byte("\x00\x00\x08\x00hello"))
				out.Close()
			}
			return err
		})
		in.SetReadDeadline(time.Now().Add(patience / 2))
		_, err := in.Read(make([]byte, 100))
		return err == nil
	}
	if arrives() {
		t.Error("GRE passes by a rule of ports")
	}
	if err := table.Apply(t.Context(), compile.Change{Add: map[compile.GroupID][]compile.Match{"i1": {{From: b4, To: b4}}}}); err != nil {
		t.Fatal(err)
	}
	if !arrives() {
		t.Error("GRE does not pass by a rule without")
	}
}

// Blocks overlap, and change.
func TestRanges(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	block := func(from, to string, port uint16) compile.Match {
		return compile.Match{From: ip(from), To: ip(to), Proto: 6, First: port, Last: port}
	}
	wide, narrow := block("10.5.0.0", "10.5.255.255", 80), block("10.5.2.0", "10.5.2.255", 80)
	wide6, all := block("fd00:5::", "fd00:5:0:ffff:ffff:ffff:ffff:ffff", 80), block("0.0.0.0", "255.255.255.255", 80)
	table := bridged(t, s, compile.Change{
		Make: map[compile.GroupID][]compile.Match{"i1": {wide, narrow, wide6}},
		Set:  isolate("i1", "", a4, a6),
	})
	step := func(what string, c compile.Change, b, peer, b6 bool) {
		t.Helper()
		if err := table.Apply(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		probes(t, what, []probe{{s.b, "tcp 10.5.1.2 80", b}, {s.peer, "tcp 10.5.1.2 80", peer}, {s.b, "tcp fd00:5:0:1::2 80", b6}, {s.b, "tcp 10.5.1.2 81", false}})
	}
	change := func(add, remove []compile.Match) compile.Change {
		return compile.Change{Add: map[compile.GroupID][]compile.Match{"i1": add}, Remove: map[compile.GroupID][]compile.Match{"i1": remove}}
	}
	step("both", compile.Change{}, true, true, true)
	step("the wide one removed", change(nil, []compile.Match{wide}), false, true, true)
	step("all added", change([]compile.Match{all}, nil), true, true, true)
	step("the narrow one and IPv6's removed", change(nil, []compile.Match{narrow, wide6}), true, true, false)
	step("all for the narrow one", change([]compile.Match{narrow}, []compile.Match{all}), false, true, false)
	step("nothing", change(nil, []compile.Match{narrow}), false, false, false)
	step("again", change([]compile.Match{wide, narrow, wide6}, nil), true, true, true)
}

// A table of our name that is somebody else's is replaced, and what it holds with it.
func TestTableOfOurName(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nstest.Sh(t, s.host, `nft -f - <<'end'
table inet overlayd_policy {
	map ingress4 { type inet_service : ipv4_addr; elements = { 80 : 10.0.0.1 } }
	set i1 { type ipv4_addr; flags interval; auto-merge; elements = { 10.0.0.0/8 } }
	chain forward { type filter hook prerouting priority 7; tcp dport @p drop; jump deeper; }
	set p { type inet_service; elements = { 99 }; }
	chain deeper { counter; }
	counter denied-in { packets 5 bytes 7 }
}
table inet overlayd_pending {
	map pending4 { type inet_service : verdict; elements = { 80 : drop } }
}
end`)
	table := bridged(t, s, compile.Change{Make: map[compile.GroupID][]compile.Match{"i1": nil}, Set: isolate("i1", "", a4, a6)})
	probes(t, "replaced", both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", false))
	if !add(t, s.host, b4) {
		t.Error("nobody waits")
	}
	// What the kernel refuses changes nothing, and is mended by making all anew.
	err := table.Apply(t.Context(), compile.Change{Add: map[compile.GroupID][]compile.Match{"i1": {{}}}, Remove: map[compile.GroupID][]compile.Match{"i1": tcp80(b4)}})
	if err == nil {
		t.Fatal("what is not there was removed")
	}
	probes(t, "refused", both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", false))
	if err := table.Release(t.Context(), []netip.Addr{b4}); err != nil {
		t.Fatal(err)
	}
	if err := table.Rebuild(t.Context(), compile.Change{Make: map[compile.GroupID][]compile.Match{"i1": {{}}}, Set: isolate("i1", "", a4, a6)}, Options{Unready: Closed}); err != nil {
		t.Fatal(err)
	}
	probes(t, "anew", both(s.b, "tcp", "10.5.1.2", "fd00:5:0:1::2", "80", true))
}
