package fastpath

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// Containers of two hosts talk, whichever of them has the fast path: it shows on the wire to neither.
func TestTraffic(t *testing.T) {
	for _, zeroChecksum := range []bool{true, false} {
		for _, fast := range []string{"both", "a", "b", "none"} {
			t.Run(fmt.Sprintf("%s/zero checksum %v", fast, zeroChecksum), func(t *testing.T) {
				t.Parallel()
				a, b := newRig(t, false, zeroChecksum)
				if fast == "both" || fast == "a" {
					a.run(t)
				}
				if fast == "both" || fast == "b" {
					b.run(t)
				}
				for _, family := range []string{"IPv4", "IPv6"} {
					transfer(t, a.inside, b.inside, b.addr(family), 32<<20)
					transfer(t, b.inside, a.inside, a.addr(family), 32<<20)
					ping(t, a.inside, b.inside, b.addr(family), 100)
				}
				for s, is := range map[*site]bool{a: fast == "both" || fast == "a", b: fast == "both" || fast == "b"} {
					got := s.Status()
					t.Logf("host %d: %v %v", s.number, got.Packets, got.ByPeer)
					if is != (got.Packets["sent"] > 1000) || is != (got.Packets["received"] > 1000) {
						t.Errorf("host %d: sent %d, received %d fast packets", s.number, got.Packets["sent"], got.Packets["received"])
					}
					if n := got.Packets["refused"] + got.Packets["gone"] + got.Packets["size"] + got.Packets["source"]; n > 0 {
						t.Errorf("host %d: %v", s.number, got.Packets)
					}
				}
			})
		}
	}
}

// The next hop of a route carries what is for a peer beyond it.
func TestTrafficByGateway(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, false, true)
	nstest.Sh(t, b.ns, "ip address add 192.0.2.99/32 dev eth0; ip address add 2001:db8::99/128 dev eth0 nodad")
	nstest.Sh(t, a.ns, "ip route add 192.0.2.2 via 192.0.2.99; ip -6 route add 2001:db8::2 via 2001:db8::99")
	far := a.peer
	far.Peers = slices.Clone(far.Peers)
	for i := range far.Peers {
		far.Peers[i].Near = false
	}
	a.Update([]Claim{far})
	a.run(t)
	for _, family := range []string{"IPv4", "IPv6"} {
		before := a.packets()["sent"]
		transfer(t, a.inside, b.inside, b.addr(family), 32<<20)
		if got := a.packets(); got["sent"] < before+500 || got["gone"] > 0 {
			t.Errorf("%s: %v", family, got)
		}
	}
	if out := nstest.Sh(t, a.ns, "ip neigh show dev eth0"); !strings.Contains(out, "192.0.2.99 ") || !strings.Contains(out, "2001:db8::99 ") {
		t.Errorf("another next hop: %s", out)
	}
}

// transfer sends random bytes by TCP and has them come back, and compares.
func transfer(t testing.TB, from, to netns.NsHandle, at netip.Addr, size int) {
	t.Helper()
	l := listenAt(t, to, at, 0)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	c := dial(t, from, "tcp", l.Addr().String())
	defer c.Close()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	begin := time.Now()
	go c.Write(data)
	sum := sha256.New()
	if _, err := io.CopyN(sum, c, int64(size)); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("other bytes came back")
	}
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("%d bytes there and back took %v", size, took)
	}
}

// ping sends datagrams and waits for the answer to each.
func ping(t testing.TB, from, to netns.NsHandle, at netip.Addr, n int) {
	t.Helper()
	pingWhile(t, from, to, at, func(i int) bool { return i < n })
}

func pingWhile(t testing.TB, from, to netns.NsHandle, at netip.Addr, more func(i int) bool) {
	t.Helper()
	var l net.PacketConn
	err := rtnl.InNetns(to, func() (err error) {
		l, err = net.ListenPacket("udp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := l.ReadFrom(b)
			if err != nil {
				return
			}
			l.WriteTo(b[:n], from)
		}
	}()
	c := dial(t, from, "udp", l.LocalAddr().String())
	defer c.Close()
	b := make([]byte, 2000)
	for i := 0; more(i); i++ {
		want := bytes.Repeat([]byte{byte(i)}, 1+i*13%1390)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("datagram %d of %d bytes: %d came back, %v", i, len(want), n, err)
		}
	}
}

func dial(t testing.TB, ns netns.NsHandle, network, address string) (c net.Conn) {
	t.Helper()
	err := rtnl.InNetns(ns, func() (err error) {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), network, address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
