package userspace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
)

// kernelOf holds the host's kernel as a daemon does, which asks the process.
func (h *host) kernelOf(every time.Duration) (*kernel.Reconciler, func()) {
	h.t.Helper()
	r, err := kernel.New(kernel.Config{Namespace: h.ns, UserSpace: h.Client, AuditEvery: every})
	h.must(err)
	return r, nstest.Run(h.t, r.Run)
}

// overlayUDP is what a host with number wants of its network: its link, and the way to peers.
func overlayUDP(number int, peers ...int) []kernel.Claim {
	link := kernel.UDPTun{Name: kernel.UDPName, Local: netip.AddrFrom4([4]byte{192, 0, 2, byte(number)}), Port: 8285, MTU: 1472}
	own := kernel.Address{Link: link.Name, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(number), 0}), 32)}
	claims := []kernel.Claim{{Owner: "self", Objects: []kernel.Object{link, own}}}
	for _, n := range peers {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
		claims = append(claims, kernel.Claim{Owner: fmt.Sprint(n), Objects: []kernel.Object{link, own,
			kernel.UDPPeer{Link: link.Name, Subnet: subnet, Host: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})},
			kernel.Route{Dst: subnet, Link: link.Name},
		}})
	}
	return claims
}

// udpPair is two hosts on a wire, each with the other as a peer.
func udpPair(t *testing.T) (a, b *host) {
	t.Helper()
	a, b = newHost(t), newHost(t)
	nstest.Sh(t, a.ns, "ip link add eth0 type veth peer name eth0 netns "+nstest.Path(b.ns))
	for i, h := range []*host{a, b} {
		nstest.Sh(t, h.ns, fmt.Sprintf("ip link set eth0 up; ip address add 192.0.2.%d/24 dev eth0", i+1))
	}
	return a, b
}

func (h *host) inStep(r *kernel.Reconciler) {
	h.t.Helper()
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("its kernel: %+v", r.Status())
		}
	})
	h.eventually("the kernel is in step", func() bool { return r.Status().InStep })
}

func (h *host) ping(dst string, args ...string) bool {
	command := "ping -n -c 1 -W 1 " + strings.Join(args, " ") + " " + dst + " >/dev/null && echo yes || true"
	return nstest.Sh(h.t, h.ns, command) == "yes\n"
}

// What happens to the process and to the link is mended by the daemon.
func TestReconcilerMends(t *testing.T) {
	t.Parallel()
	for what, happens := range map[string]func(h *host){
		"link deleted":   func(h *host) { nstest.Sh(h.t, h.ns, "ip link delete overlay.udp") },
		"link down":      func(h *host) { nstest.Sh(h.t, h.ns, "ip link set overlay.udp down") },
		"other MTU":      func(h *host) { nstest.Sh(h.t, h.ns, "ip link set overlay.udp mtu 600") },
		"other alias":    func(h *host) { nstest.Sh(h.t, h.ns, "ip link set overlay.udp alias 'overlayd-tun udp 192.0.2.9:1'") },
		"link renamed":   func(h *host) { nstest.Sh(h.t, h.ns, "ip link set overlay.udp down; ip link set overlay.udp name gone") },
		"process killed": func(h *host) { h.end() },
		"peer removed": func(h *host) {
			h.must(h.SetUDPPeers(kernel.UDPName, nil, []kernel.UDPPeer{{Subnet: netip.MustParsePrefix("10.5.2.0/24")}}))
		},
		"peer changed": func(h *host) {
			h.must(h.SetUDPPeers(kernel.UDPName, []kernel.UDPPeer{{Subnet: netip.MustParsePrefix("10.5.2.0/24"), Host: netip.MustParseAddr("192.0.2.99")}}, nil))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			a, b := udpPair(t)
			ra, _ := a.kernelOf(200 * time.Millisecond)
			ra.Replace("net", overlayUDP(1, 2))
			rb, _ := b.kernelOf(0)
			rb.Replace("net", overlayUDP(2, 1))
			a.inStep(ra)
			b.inStep(rb)
			a.eventually("the other is reached", func() bool { return a.ping("10.5.2.0") })
			happens(a)
			a.eventually("the other is reached again", func() bool { return a.ping("10.5.2.0", "-M do -s 1444") })
		})
	}
}

// A daemon that comes next changes nothing, but takes away peers that nobody has any more; packets flow meanwhile.
func TestReconcilerRestart(t *testing.T) {
	t.Parallel()
	a, b := udpPair(t)
	ra, stop := a.kernelOf(0)
	ra.Replace("net", overlayUDP(1, 2, 3))
	rb, _ := b.kernelOf(0)
	rb.Replace("net", overlayUDP(2, 1))
	a.inStep(ra)
	a.eventually("the other is reached", func() bool { return a.ping("10.5.2.0") })
	before := a.there(kernel.UDPName)
	pings := make(chan string)
	go func() {
		pings <- nstest.Sh(t, a.ns, "ping -n -i 0.01 -c 200 10.5.2.0 || true")
	}()
	stop()
	ra, _ = a.kernelOf(0)
	ra.Replace("net", overlayUDP(1, 2))
	a.inStep(ra)
	if said := <-pings; !strings.Contains(said, " 0% packet loss") {
		t.Errorf("while the daemon was started anew:\n%s", said)
	}
	if now := a.there(kernel.UDPName); now != before {
		t.Errorf("the link was\n%s and is\n%s", before, now)
	}
	peers, err := a.UDPPeers(kernel.UDPName)
	a.must(err)
	if want := []kernel.UDPPeer{{Link: kernel.UDPName, Subnet: netip.MustParsePrefix("10.5.2.0/24"), Host: netip.MustParseAddr("192.0.2.2")}}; !slices.Equal(peers, want) {
		t.Errorf("the peers are %v, not %v", peers, want)
	}
	links, err := kernel.Links(a.ns)
	a.must(err)
	if len(links) != 1 || links[0].Link != (kernel.UDPTun{Name: kernel.UDPName, Local: netip.MustParseAddr("192.0.2.1"), Port: 8285, MTU: 1472}) || !links[0].UserSpace {
		t.Errorf("there are %+v", links)
	}
}

// The host gets another address: the link stays, and its routes.
func TestReconcilerMovesTheLink(t *testing.T) {
	t.Parallel()
	a, b := udpPair(t)
	nstest.Sh(t, a.ns, "ip address add 192.0.2.11/24 dev eth0")
	ra, _ := a.kernelOf(0)
	ra.Replace("net", overlayUDP(1, 2))
	a.inStep(ra)
	before, _, _ := strings.Cut(a.there(kernel.UDPName), ":") // its index
	rb, _ := b.kernelOf(0)
	rb.Replace("net", overlayUDP(2, 1))
	b.inStep(rb)
	a.eventually("the other is reached", func() bool { return a.ping("10.5.2.0") })

	moved := overlayUDP(1, 2)
	for i, c := range moved {
		for j, o := range c.Objects {
			if u, ok := o.(kernel.UDPTun); ok {
				u.Local = netip.MustParseAddr("192.0.2.11")
				moved[i].Objects[j] = u
			}
		}
	}
	ra.Replace("net", moved)
	known := overlayUDP(2, 1)
	known[1].Objects[2] = kernel.UDPPeer{Link: kernel.UDPName, Subnet: netip.MustParsePrefix("10.5.1.0/24"), Host: netip.MustParseAddr("192.0.2.11")}
	rb.Replace("net", known)
	a.inStep(ra)
	b.inStep(rb)
	a.eventually("the other is reached", func() bool { return a.ping("10.5.2.0") })
	if now, _, _ := strings.Cut(a.there(kernel.UDPName), ":"); now != before {
		t.Errorf("the link is another: %s, not %s", now, before)
	}
}

// What cannot be made is said, and made as soon as it can.
func TestReconcilerWaitsForThePort(t *testing.T) {
	t.Parallel()
	a, _ := udpPair(t)
	taken := nstest.Sh(t, a.ns, "socat UDP4-RECVFROM:8285,bind=192.0.2.1 /dev/null >/dev/null 2>&1 & echo $!")
	a.eventually("the port is taken", func() bool { return strings.Contains(nstest.Sh(t, a.ns, "ss -ulnH"), ":8285") })
	r, _ := a.kernelOf(0)
	r.Replace("net", overlayUDP(1, 2))
	a.eventually("it says so", func() bool {
		for _, f := range r.Status().Failed {
			if strings.Contains(f.Err.Error(), "UDP port 8285 of 192.0.2.1 is taken") {
				return true
			}
		}
		return false
	})
	nstest.Sh(t, a.ns, "kill "+taken)
	a.inStep(r)
}
