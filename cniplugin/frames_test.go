package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// wire is a packet socket on an interface of a container, or of the host.
type wire struct {
	t     *testing.T
	fd    int
	index int
}

// openWire opens a socket that sends and hears all frames of an interface.
func openWire(t *testing.T, ns, ifName string) wire {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	target, err := netns.GetFromPath(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := netns.Set(target); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(own); err != nil {
			panic(err) // the thread is lost
		}
	}()
	link, err := net.InterfaceByName(ifName)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	w := wire{t, fd, link.Index}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	patience := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w wire) send(frame []byte) {
	w.t.Helper()
	to := &unix.SockaddrLinklayer{Ifindex: w.index}
	if err := unix.Sendto(w.fd, frame, 0, to); err != nil {
		w.t.Fatal(err)
	}
}

// heard says whether a frame with the mark comes before one with the fence.
func (w wire) heard(mark, fence string) bool {
	w.t.Helper()
	buf := make([]byte, 64<<10)
	for heard := false; ; {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err != nil {
			w.t.Fatalf("not even what may be sent arrives: %v", err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		heard = heard || contains(buf[:n], mark)
		if contains(buf[:n], fence) {
			return heard
		}
	}
}

func contains(b []byte, text string) bool {
	for i := 0; i+len(text) <= len(b); i++ {
		if string(b[i:i+len(text)]) == text {
			return true
		}
	}
	return false
}

const broadcast = "ff:ff:ff:ff:ff:ff"

func mac(text string) []byte {
	m, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return m
}

func addr(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

func join(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// ethernet is a frame, of a type such as "\x08\x00".
func ethernet(dst, src, typ string, payload []byte) []byte {
	return join(mac(dst), mac(src), []byte(typ), payload)
}

func ipv4(src, dst string, proto byte, payload []byte) []byte {
	h := join([]byte{0x45, 0}, be16(20+len(payload)), []byte{0, 0, 0, 0, 64, proto, 0, 0}, addr(src), addr(dst))
	copy(h[10:], sum(h))
	return append(h, payload...)
}

func ipv6(src, dst string, proto byte, payload []byte) []byte {
	return join([]byte{0x60, 0, 0, 0}, be16(len(payload)), []byte{proto, 255}, addr(src), addr(dst), payload)
}

func udp(from, to int, text string) []byte {
	return join(be16(from), be16(to), be16(8+len(text)), []byte{0, 0}, []byte(text))
}

func arp(op byte, senderMAC, sender, targetMAC, target, mark string) []byte {
	return join([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac(senderMAC), addr(sender), mac(targetMAC), addr(target), []byte(mark))
}

// icmpv6 is a message of ND, whose checksum is right.
func icmpv6(src, dst string, typ byte, rest []byte) []byte {
	m := join([]byte{typ, 0, 0, 0}, rest)
	copy(m[2:], sum(join(addr(src), addr(dst), be16(0), be16(len(m)), []byte{0, 0, 0, 58}, m)))
	return m
}

// option is one of ND, padded to eight bytes.
func option(typ byte, data []byte) []byte {
	o := join([]byte{typ, 0}, data)
	for len(o)%8 != 0 {
		o = append(o, 0)
	}
	o[1] = byte(len(o) / 8)
	return o
}

func be16(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

func sum(b []byte) []byte {
	var s uint32
	if len(b)%2 != 0 {
		b = append(b[:len(b):len(b)], 0)
	}
	for ; len(b) > 0; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return be16(int(^s & 0xffff))
}
