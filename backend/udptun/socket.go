package udptun

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bufferSize is how much of datagrams the kernel shall keep for each direction, in bytes. wireguard-go has as much.
const bufferSize = 7 << 20

// socket is where datagrams are sent from and received.
type socket struct {
	*waiter
	at  netip.AddrPort
	gso atomic.Bool
	use sync.Mutex // by who sends: it is closed by who receives
}

func listen(at netip.AddrPort, noGSO bool) (*socket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, bufferSize) // less is slower
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // likewise none
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
	var w *waiter
	if err == nil {
		w, err = newWaiter(fd)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		err = fmt.Errorf("UDP port %d of %s is taken (ss -ulpn 'sport = %[1]d' shows by whom): %[3]w", at.Port(), at.Addr(), err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		err = fmt.Errorf("this host has no address %s: %w", at.Addr(), err)
	case errors.Is(err, unix.EACCES):
		err = fmt.Errorf("UDP port %d (below 1024 it needs CAP_NET_BIND_SERVICE): %w", at.Port(), err)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &socket{waiter: w, at: at}
	_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	s.gso.Store(err == nil && !noGSO)
	return s, nil
}

// Check says why nothing can be sent from and received at an address; nil: it can.
func Check(at netip.AddrPort) error {
	s, err := listen(at, false)
	if err == nil {
		s.close()
	}
	return err
}

// waiter is a non-blocking descriptor for which threads wait in the kernel: by Go's poller, a packet would take half as long
// again.
type waiter struct {
	fd   int
	stop int // an eventfd: it can be read when nobody shall wait any more

	mu     sync.Mutex // of wake and close
	closed bool
}

func newWaiter(fd int) (*waiter, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &waiter{fd: fd, stop: stop}, nil
}

// wait waits until the descriptor is ready for events (POLLIN, POLLOUT); false: nobody shall any more.
func (w *waiter) wait(events int16) bool {
	fds := [...]unix.PollFd{{Fd: int32(w.fd), Events: events}, {Fd: int32(w.stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds[:], -1); err == nil {
			return fds[1].Revents == 0
		}
	}
}

// wake ends every wait, of now and later.
func (w *waiter) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	_, _ = unix.Write(w.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (w *waiter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	unix.Close(w.fd)
	unix.Close(w.stop)
	w.fd, w.closed = -1, true
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
func sendmmsg(fd int, messages []mmsghdr) (int, unix.Errno) {
	n, _, err := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	return int(n), err
}

func recvmmsg(fd int, messages []mmsghdr) (int, unix.Errno) {
	n, _, err := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
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
