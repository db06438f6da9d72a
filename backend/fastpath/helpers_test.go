package fastpath

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

func listenAt(t testing.TB, ns netns.NsHandle, at netip.Addr, port uint16) (l net.Listener) {
	t.Helper()
	err := rtnl.InNetns(ns, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// echo answers what connects to l with what it sends.
func echo(l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
}

// exchange sends random bytes to something that echoes, and compares.
func exchange(t testing.TB, c net.Conn, size int) {
	t.Helper()
	defer c.Close()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	c.SetDeadline(time.Now().Add(15 * time.Second))
	go c.Write(data)
	sum := sha256.New()
	if n, err := io.CopyN(sum, c, int64(size)); err != nil {
		t.Fatalf("after %d bytes: %v", n, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("other bytes came back")
	}
}

func listenPacket(t testing.TB, ns netns.NsHandle, at netip.Addr) (c *net.UDPConn) {
	t.Helper()
	err := rtnl.InNetns(ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	roomy(t, c)
	return c
}

// roomy has nothing be lost for want of room in the socket, whatever the host allows (net.core.rmem_max): its reader may wait
// long for its turn where the machine is slow.
func roomy(t testing.TB, c *net.UDPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// segments sends n datagrams of a size at a time, by which one packet passes the stack.
func segments(t testing.TB, a, b *site, family string, size, n int, within time.Duration) {
	t.Helper()
	l := listenPacket(t, b.inside, b.addr(family))
	c := dial(t, a.inside, "udp", l.LocalAddr().String()).(*net.UDPConn)
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const udpSegment = 103
	raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), unix.SOL_UDP, udpSegment, size) })
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size*n-7)
	rand.NewChaCha8([32]byte{}).Read(data)
	for range 10 {
		if _, err := c.Write(data); err != nil {
			t.Fatal(err)
		}
		var got []byte
		b := make([]byte, 65536)
		l.SetReadDeadline(time.Now().Add(within))
		for len(got) < len(data) {
			n, err := l.Read(b)
			if err != nil {
				t.Fatalf("%s: after %d bytes of %d: %v", family, len(got), len(data), err)
			}
			if n != size && len(got)+n != len(data) {
				t.Errorf("%s: a datagram has %d bytes, want %d", family, n, size)
			}
			got = append(got, b[:n]...)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%s: other bytes came", family)
		}
	}
}
