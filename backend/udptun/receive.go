package udptun

import (
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// received is how many datagrams are taken from the socket before their packets are given to the link.
const received = 32

// receiver is the memory of what takes datagrams from a socket. It takes them from everybody, as the kernel's tunnels do: a peer whose
// lease this host does not know yet, or not any more, sends by it too. Who may is the guard's business.
type receiver struct {
	t        *Tunnel
	buffers  [][]byte
	wire     []mmsghdr
	controls [][controlLen]byte
	ios      []unix.Iovec
	join     joined
}

func newReceiver(t *Tunnel) *receiver {
	r := &receiver{
		t: t, wire: make([]mmsghdr, received),
		controls: make([][controlLen]byte, received), ios: make([]unix.Iovec, received),
	}
	for i := range received {
		b := make([]byte, maxPacketLen)
		r.buffers = append(r.buffers, b)
		r.ios[i] = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	}
	r.join.give = r.give
	return r
}

// receive takes datagrams from a socket, and gives their packets to the link, until the socket shall be closed: it does that.
func (t *Tunnel) receive(s *socket) {
	runtime.LockOSThread() // which waits for the socket and nothing else
	r := newReceiver(t)
	for n := r.read(s); n > 0; n = r.read(s) {
		for i := range n {
			r.take(i)
		}
		r.join.flush()
	}
	s.use.Lock()
	defer s.use.Unlock()
	s.close()
}

// read waits for messages, and tells how many came; 0: no more will.
func (r *receiver) read(s *socket) int {
	for i := range r.wire {
		r.wire[i] = mmsghdr{Msghdr: unix.Msghdr{Iov: &r.ios[i], Iovlen: 1, Control: &r.controls[i][0]}}
		r.wire[i].SetControllen(controlLen)
	}
	for {
		n, errno := recvmmsg(s.fd, r.wire)
		switch {
		case errno == 0:
			return n
		case errno == unix.EAGAIN:
			if !s.wait(unix.POLLIN) {
				return 0
			}
		case errno != unix.EINTR:
			r.t.said.do(func() { r.t.log.Warn("cannot receive", "err", errno) })
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// take takes a message, which is of one datagram or of several.
func (r *receiver) take(i int) {
	h := &r.wire[i]
	b := r.buffers[i][:h.n]
	size := segmentSize(r.controls[i][:h.Controllen])
	if size == 0 {
		size = max(len(b), 1)
	}
	if h.Flags&unix.MSG_TRUNC != 0 {
		r.t.Malformed.Add(1)
		return
	}
	for len(b) > 0 {
		n := min(size, len(b))
		r.packet(b[:n])
		b = b[n:]
	}
}

// packet takes one.
func (r *receiver) packet(p []byte) {
	ip := headerLen(p)
	if ip == 0 {
		r.t.Malformed.Add(1)
		return
	}
	if age(p) {
		r.join.add(p, ip)
	}
}

// give gives a packet to the link, in its parts. A link that is down takes none.
func (r *receiver) give(ios []unix.Iovec) {
	_, _, _ = unix.Syscall(unix.SYS_WRITEV, uintptr(r.t.tun.fd), uintptr(unsafe.Pointer(&ios[0])), uintptr(len(ios)))
}
