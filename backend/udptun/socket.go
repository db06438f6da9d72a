package udptun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bufferSize is how much of datagrams the kernel shall keep for each direction, in bytes. wireguard-go has as much.
const bufferSize = 7 << 20

// socket is where datagrams are sent from and received.
type socket struct {
	at   netip.AddrPort
	conn *net.UDPConn
	raw  syscall.RawConn
	gso  atomic.Bool
}

func listen(at netip.AddrPort, noGSO bool) (*socket, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, bufferSize) // less is slower
			}
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) // likewise none
		})
	}}
	conn, err := config.ListenPacket(context.Background(), "udp4", at.String())
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("UDP port %d is taken at %s: ss -ulpn 'sport = %[1]d' shows by whom: %[3]w", at.Port(), at.Addr(), unix.EADDRINUSE)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("this host has no address %s: %w", at.Addr(), unix.EADDRNOTAVAIL)
	case err != nil:
		return nil, err
	}
	s := &socket{at: at, conn: conn.(*net.UDPConn)}
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, err
	}
	err = s.raw.Control(func(fd uintptr) {
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.gso.Store(err == nil && !noGSO)
	})
	return s, err
}

// mmsghdr is struct mmsghdr of recvmmsg(2), on machines of 64 bits.
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// controlLen is the room of a control message with an int.
const controlLen = unix.SizeofCmsghdr + 8

// sendmmsg sends messages from a non-blocking socket, and tells how many it has sent.
func sendmmsg(fd uintptr, messages []mmsghdr) (int, unix.Errno) {
	n, _, err := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	return int(n), err
}

func recvmmsg(fd uintptr, messages []mmsghdr) (int, unix.Errno) {
	n, _, err := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), err
}

// putSegmentSize makes control say of which size the kernel shall make datagrams (UDP_SEGMENT of udp(7)).
func putSegmentSize(control *[controlLen]byte, size uint16) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(control))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	*(*uint16)(unsafe.Pointer(&control[unix.SizeofCmsghdr])) = size
}

// segmentSize is of which size the datagrams were that the kernel has made one of (UDP_GRO); 0: it is one as it came.
func segmentSize(control []byte) int {
	if len(control) < unix.SizeofCmsghdr+2 {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	if h.Level != unix.IPPROTO_UDP || h.Type != unix.UDP_GRO {
		return 0
	}
	return int(*(*uint16)(unsafe.Pointer(&control[unix.SizeofCmsghdr])))
}

// closed tells whether an error is that of what was closed, or of a link that is gone.
func closed(err error) bool {
	return errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EBADFD) || errors.Is(err, unix.EFAULT)
}
