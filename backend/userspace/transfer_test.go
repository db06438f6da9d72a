package userspace

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// plain carries packets one by one, as flanneld does, for a host: whatever comes must be finished.
func (h *host) plain(peer string) {
	h.t.Helper()
	conn := h.flannel("192.0.2.2", 8285)
	var file *os.File
	h.must(rtnl.InNetns(h.ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq("flannel0")
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "tun")
		return nil
	}))
	h.t.Cleanup(func() { file.Close() })
	nstest.Sh(h.t, h.ns, "ip link set flannel0 up mtu 1472; ip address add 10.5.2.0/32 dev flannel0; ip route add 10.5.0.0/16 dev flannel0")
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := file.Read(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], &net.UDPAddr{IP: net.ParseIP(peer), Port: 8285})
		}
	}()
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			_, _ = file.Write(b[:n])
		}
	}()
}

// Large transfers arrive as they were sent, between two of ours and with one that carries packets one by one.
func TestUDPTransfer(t *testing.T) {
	t.Parallel()
	for _, other := range []string{"ours", "one by one"} {
		for _, family := range []string{"offload", "no offload"} {
			t.Run(other+", "+family, func(t *testing.T) {
				t.Parallel()
				a, b := udpPair(t)
				a.serve(1, 2)
				if other == "ours" {
					b.serve(2, 1)
				} else {
					b.plain("192.0.2.1")
				}
				if family == "no offload" { // the kernel then refuses to make datagrams of large ones: EIO
					for _, h := range []*host{a, b} {
						nstest.Sh(t, h.ns, "ethtool -K eth0 tx off tso off gso off gro off 2>/dev/null || true")
					}
				}
				a.eventually("the other is reached", func() bool { return a.ping("10.5.2.0") })
				transfer(t, a, b, "10.5.2.0:7")
				transfer(t, b, a, "10.5.1.0:7")
				datagrams(t, a, b, "10.5.2.0:8")
			})
		}
	}
}

// transfer sends bytes by TCP to a host.
func transfer(t *testing.T, from, to *host, addr string) {
	t.Helper()
	var l net.Listener
	to.must(rtnl.InNetns(to.ns, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", addr)
		return err
	}))
	defer l.Close()
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- b
	}()
	var c net.Conn
	from.must(rtnl.InNetns(from.ns, func() (err error) {
		c, err = net.DialTimeout("tcp4", addr, 10*time.Second)
		return err
	}))
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	_, err := c.Write(data)
	from.must(err)
	c.Close()
	select {
	case b := <-got:
		if !bytes.Equal(b, data) {
			t.Errorf("%d bytes arrived of %d, or others", len(b), len(data))
		}
	case <-time.After(30 * time.Second):
		t.Error("the transfer does not end")
	}
}

// datagrams sends large ones that the kernel shall cut (UDP_SEGMENT), and small ones.
func datagrams(t *testing.T, from, to *host, addr string) {
	t.Helper()
	at := netip.MustParseAddrPort(addr)
	server := to.flannel(at.Addr().String(), int(at.Port()))
	var c net.Conn
	from.must(rtnl.InNetns(from.ns, func() (err error) {
		c, err = net.Dial("udp4", addr)
		return err
	}))
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	from.must(err)
	data := make([]byte, 10*1000+1)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, size := range []int{1000, 0} {
		from.must(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) }))
		from.must(err)
		var want [][]byte
		if size > 0 {
			for rest := data; len(rest) > 0; rest = rest[min(size, len(rest)):] {
				want = append(want, rest[:min(size, len(rest))])
			}
		} else {
			want = [][]byte{data[:1400], {}, data[:1], data[:1444], data[:5000]} // the last is sent in fragments
		}
		if size > 0 {
			_, err = c.Write(data)
			from.must(err)
		} else {
			for _, d := range want {
				_, err = c.Write(d)
				from.must(err)
			}
		}
		for i, d := range want {
			if got := next(server, 10*time.Second); !bytes.Equal(got, d) {
				t.Errorf("datagram %d of size %d has %d bytes, not %d, or others", i, size, len(got), len(d))
			}
		}
	}
}
