package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Sizes in bytes. A dump comes in pieces of at most 32 KiB (netlink_dump in net/netlink/af_netlink.c); the sockets'
// buffers hold the answers to a whole batch, and the echo of a few hundred thousand changes by others.
const (
	pieceSize   = 64 << 10
	answersSize = 4 << 20
	eventsSize  = 64 << 20
)

// conn is a NETLINK_ROUTE socket in one network namespace, for one goroutine. What it does beyond the socket of
// package nl: many requests in a sendmsg, answers matched to them, and the port, which tells our echo from others'
// changes.
type conn struct {
	file *os.File
	raw  syscall.RawConn
	port uint32
	seq  uint32
	buf  []byte
}

// dial opens a socket in ns that also hears of the multicast groups.
func dial(ns netns.NsHandle, rcvbuf int, groups ...uint) (*conn, error) {
	var fd int
	err := inNetns(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	c := &conn{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, pieceSize)}
	if err := c.setup(fd, rcvbuf, groups); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) setup(fd, rcvbuf int, groups []uint) (err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf); err != nil {
		return fmt.Errorf("netlink receive buffer (needs CAP_NET_ADMIN): %w", err)
	}
	// Errors need not quote the request, but should say why; dumps should give only what the header asks for.
	for _, opt := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return fmt.Errorf("netlink socket option %d (needs Linux 4.20): %w", opt, err)
		}
	}
	addr := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range groups {
		addr.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("netlink port: %w", err)
	}
	c.port = name.(*unix.SockaddrNetlink).Pid
	c.raw, err = c.file.SyscallConn()
	return err
}

func (c *conn) close() error { return c.file.Close() }

// receive waits for a datagram. What it returns is overwritten by the next.
func (c *conn) receive() ([]byte, error) {
	var n, flags int
	var err error
	rawErr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, _, flags, _, err = unix.Recvmsg(int(fd), c.buf, nil, 0)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch err := errors.Join(rawErr, err); {
	case err != nil:
		return nil, fmt.Errorf("receive from netlink: %w", err)
	case flags&unix.MSG_TRUNC != 0:
		return nil, fmt.Errorf("receive from netlink: message longer than %d bytes", len(c.buf))
	}
	return c.buf[:n], nil
}

func (c *conn) send(b []byte) error {
	var err error
	rawErr := c.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return err != unix.EAGAIN
	})
	if err := errors.Join(rawErr, err); err != nil {
		return fmt.Errorf("send to netlink: %w", err)
	}
	return nil
}

// exec sends all requests of b at once and returns the errors of those that failed, by their place in b. The error
// is of the socket: nobody knows then what was done. The kernel answers each that fails, and the last: as it works
// in order, silence about the others is success. reply gets what is answered to reading requests.
func (c *conn) exec(b *batch, reply func(i int, body []byte)) (map[int]error, error) {
	if b.n == 0 {
		return nil, nil
	}
	first := c.seq
	c.seq += uint32(b.n)
	b.seal(first, unix.NLM_F_ACK)
	if err := c.send(b.buf); err != nil {
		return nil, err
	}
	var failed map[int]error
	for {
		piece, err := c.receive()
		if err != nil {
			return nil, err
		}
		for h, body := range messages(piece) {
			i := int(h.Seq - first)
			switch {
			case i < 0 || i >= b.n: // of a batch whose answers were lost
				continue
			case h.Type != unix.NLMSG_ERROR:
				if reply != nil {
					reply(i, body)
				}
				continue
			}
			if err := answer(h, body); err != nil {
				if failed == nil {
					failed = make(map[int]error)
				}
				failed[i] = err
			}
			if i == b.n-1 {
				return failed, nil
			}
		}
	}
}

// dump sends the one request of b and gives each message of the answer to f, which must not keep it. Where the
// answer is inconsistent because something changed meanwhile, it tries again, and f sees messages twice.
func (c *conn) dump(b *batch, f func(body []byte)) error {
	return c.dumpUntil(b, never, f)
}

// errStopped is the error of dumpUntil when it was stopped.
var errStopped = errors.New("stopped")

// dumpUntil is dump, but asks after each piece of the answer whether to stop. c can only be closed then.
func (c *conn) dumpUntil(b *batch, stop func() bool, f func(body []byte)) error {
	const tries = 5
	var err error
	for range tries {
		if err = c.dumpOnce(b, stop, f); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

func (c *conn) dumpOnce(b *batch, stop func() bool, f func(body []byte)) error {
	seq := c.seq
	c.seq++
	b.seal(seq, unix.NLM_F_DUMP)
	if err := c.send(b.buf); err != nil {
		return err
	}
	var interrupted error
	for {
		piece, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range messages(piece) {
			if h.Seq != seq {
				continue
			}
			if h.Flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = netlink.ErrDumpInterrupted
			}
			switch h.Type {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				return errors.Join(answer(h, body), interrupted)
			}
			f(body)
		}
		if stop() {
			return errStopped
		}
	}
}

// kernelError is what the kernel answered, with its explanation if it gave one.
type kernelError struct {
	errno unix.Errno
	text  string
}

func (e kernelError) Error() string {
	if e.text == "" {
		return e.errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.errno, e.text)
}

func (e kernelError) Unwrap() error { return e.errno }

// answer is the error that an NLMSG_ERROR or NLMSG_DONE carries; nil if it tells of success.
func answer(h unix.NlMsghdr, body []byte) error {
	if len(body) < 4 {
		return nil
	}
	errno := -int32(binary.NativeEndian.Uint32(body))
	if errno == 0 {
		return nil
	}
	e := kernelError{errno: unix.Errno(errno)}
	at := 4
	if h.Type == unix.NLMSG_ERROR {
		at += unix.NLMSG_HDRLEN
	}
	if h.Flags&unix.NLM_F_ACK_TLVS != 0 && len(body) > at {
		for typ, data := range attributes(body[at:]) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.text = unix.ByteSliceToString(data)
			}
		}
	}
	return e
}

// messages walks over the messages of a datagram.
func messages(b []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			h := unix.NlMsghdr{
				Len:   binary.NativeEndian.Uint32(b),
				Type:  binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq:   binary.NativeEndian.Uint32(b[8:]),
				Pid:   binary.NativeEndian.Uint32(b[12:]),
			}
			if h.Len < unix.NLMSG_HDRLEN || int(h.Len) > len(b) || !yield(h, b[unix.NLMSG_HDRLEN:h.Len]) {
				return
			}
			b = b[min(align(int(h.Len)), len(b)):]
		}
	}
}

// attributes walks over the attributes in b.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofRtAttr || size > len(b) || !yield(typ, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// align rounds up to the four bytes that netlink aligns everything to.
func align(n int) int { return (n + 3) &^ 3 }
