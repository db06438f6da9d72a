package fastpath

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// frame is a packet with what virtio tells a card of it: whether the card is to cut it, and to finish its checksum.
type frame struct {
	virtio virtio
	data   []byte
}

type virtio struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

const virtioSize = 10

// tap is a packet socket on a link: it sends as the link's user does, and sees what comes in.
type tap struct{ fd int }

func newTap(t testing.TB, ns netns.NsHandle, link string) tap {
	t.Helper()
	var at tap
	l := iface(t, ns, link)
	err := rtnl.InNetns(ns, func() (err error) {
		at.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(at.fd) })
	for _, o := range [][3]int{
		{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1}, {unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64 << 20},
	} {
		if err := unix.SetsockoptInt(at.fd, o[0], o[1], o[2]); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(at.fd, &unix.SockaddrLinklayer{Protocol: order16(unix.ETH_P_ALL), Ifindex: l.Index}); err != nil {
		t.Fatal(err)
	}
	return at
}

// send sends a frame. What the kernel does not take, it takes neither way.
func (at tap) send(f frame) error {
	b, _ := binary.Append(nil, binary.NativeEndian, f.virtio)
	_, err := unix.Write(at.fd, append(b, f.data...))
	return err
}

// drain returns what came in.
func (at tap) drain() (all []frame) {
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(at.fd, b)
		if err != nil || n < virtioSize+14 {
			return all
		}
		var f frame
		binary.Decode(b, binary.NativeEndian, &f.virtio)
		f.data = append(f.data, b[virtioSize:n]...)
		all = append(all, f)
	}
}

// normal is a frame as text without what may differ between two of one packet; empty: it says nothing of packets of a test.
func (f frame) normal(withVirtio bool) string {
	b := append([]byte(nil), f.data...)
	if !normalize(b) {
		return ""
	}
	if !withVirtio || f.virtio.GSOType == 0 {
		return fmt.Sprintf("%x", b)
	}
	return fmt.Sprintf("gso %d %d: %x", f.virtio.GSOType, f.virtio.GSOSize, b)
}

// normalize zeroes the outer UDP source port and checksum, and those numbers of IP packets which the kernel makes up.
func normalize(b []byte) bool {
	if len(b) < 14 {
		return true
	}
	ip := b[14:]
	switch {
	case b[12] == 8 && b[13] == 6:
		return false // ARP
	case b[12] == 8 && b[13] == 0 && len(ip) >= 28:
		l4 := int(ip[0]&15) * 4
		if l4 < 20 || len(ip) < l4+8 || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return true
		}
		switch {
		case ip[9] == 2:
			return false // IGMP
		case ip[9] == protoICMP && ip[l4] == 3 && ip[l4+1] <= 1:
			return false // host unreachable, when ARP gives up; network unreachable, of which the kernel sends some a second
		case ip[9] == protoICMP, ip[9] == protoTCP && len(ip) >= l4+14 && ip[l4+13]&4 != 0:
			clear(ip[4:6])
			clear(ip[10:12])
		case ip[9] == protoUDP && binary.BigEndian.Uint16(ip[l4+2:]) == 8472:
			clear(ip[4:6])
			clear(ip[10:12])
			return normalizeInner(ip[l4:])
		}
	case b[12] == 0x86 && b[13] == 0xdd && len(ip) >= 48:
		switch l4 := ip[40:]; {
		case ip[6] == 58 && (l4[0] >= 130 && l4[0] <= 137 || l4[0] == 143 || l4[0] == 1 && l4[1] == 3):
			return false // of neighbours and groups; address unreachable
		case ip[6] == 0 && l4[0] == 58 && len(l4) > 8 && (l4[8] >= 130 && l4[8] <= 132 || l4[8] == 143):
			return false
		case ip[6] == protoUDP && binary.BigEndian.Uint16(l4[2:]) == 8472:
			return normalizeInner(l4)
		}
	}
	return true
}

func normalizeInner(udp []byte) bool {
	clear(udp[0:2])
	clear(udp[6:8])
	return len(udp) < 16 || normalize(udp[16:])
}
