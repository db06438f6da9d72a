package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// pieceSize is that of a piece of a dump, of 32 KiB at most, in bytes (netlink_dump in net/netlink/af_netlink.c).
const pieceSize = 64 << 10

// The sizes of sockets' buffers, in bytes.
const (
	AnswersSize = 4 << 20  // holds the answers to a whole batch
	EventsSize  = 64 << 20 // holds what a few hundred thousand changes by others tell
)

// Conn is a netlink socket in one network namespace, for one goroutine. What it does beyond the socket of
// package nl: many requests in a sendmsg, answers matched to them, and the port, which tells our echo from others'
// changes.
type Conn struct {
	Port uint32 // by which the kernel knows the socket, also in what it tells others of the socket's deeds

	file *os.File
	raw  syscall.RawConn
	seq  uint32
	buf  []byte
}

// Dial opens a socket in ns that also hears of the multicast groups.
func Dial(ns netns.NsHandle, rcvbuf int, groups ...uint) (*Conn, error) {
	return dial(ns, unix.NETLINK_ROUTE, rcvbuf, groups)
}

// DialNetfilter is Dial for NETLINK_NETFILTER. Where the kernel has none the error is unix.EPROTONOSUPPORT.
func DialNetfilter(ns netns.NsHandle, rcvbuf int, groups ...uint) (*Conn, error) {
	return dial(ns, unix.NETLINK_NETFILTER, rcvbuf, groups)
}

// DialXfrm is Dial for NETLINK_XFRM. Where the kernel has none the error is unix.EPROTONOSUPPORT.
func DialXfrm(ns netns.NsHandle, rcvbuf int, groups ...uint) (*Conn, error) {
	return dial(ns, unix.NETLINK_XFRM, rcvbuf, groups)
}

func dial(ns netns.NsHandle, protocol, rcvbuf int, groups []uint) (*Conn, error) {
	var fd int
	err := InNetns(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	c := &Conn{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, pieceSize)}
	if err := c.setup(fd, rcvbuf, groups); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) setup(fd, rcvbuf int, groups []uint) (err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvbuf); err != nil {
		return fmt.Errorf("netlink receive buffer (needs CAP_NET_ADMIN): %w", err)
	}
	// A transaction of nftables is one message, however many elements it has.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, EventsSize); err != nil {
		return fmt.Errorf("netlink send buffer (needs CAP_NET_ADMIN): %w", err)
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
	c.Port = name.(*unix.SockaddrNetlink).Pid
	c.raw, err = c.file.SyscallConn()
	return err
}

// Close ends the socket, and every call that waits for it.
func (c *Conn) Close() error { return c.file.Close() }

// receive waits for a datagram. What it returns is overwritten by the next.
func (c *Conn) receive() ([]byte, error) {
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

func (c *Conn) send(b []byte) error {
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

// Exec sends all requests of b at once and returns the errors of those that failed, by their place in b. The error
// is of the socket: nobody knows then what was done. The kernel answers each that fails, and the last: as it works
// in order, silence about the others is success. reply gets what is answered to reading requests.
func (c *Conn) Exec(b *Batch, reply func(i int, body []byte)) (map[int]error, error) {
	if b.n == 0 {
		return nil, nil
	}
	first := c.seq
	c.seq += uint32(b.n)
	b.seal(first, b.n-1, unix.NLM_F_ACK)
	if err := c.send(b.buf); err != nil {
		return nil, err
	}
	var failed map[int]error
	for {
		piece, err := c.receive()
		if err != nil {
			return nil, err
		}
		for h, body := range Messages(piece) {
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

// Dump sends the one request of b and gives each message of the answer to f, which must not keep it. Where the
// answer is inconsistent because something changed meanwhile, it tries again, and f sees messages twice.
func (c *Conn) Dump(b *Batch, f func(body []byte)) (err error) {
	return Consistent(func() error { return c.DumpOnce(b, func() bool { return false }, f) })
}

// Consistent calls dump again where the kernel changed meanwhile, so that the answer is of one moment.
func Consistent(dump func() error) (err error) {
	const tries = 5
	for range tries {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

// ErrStopped is the error of DumpOnce when it was stopped.
var ErrStopped = errors.New("stopped")

// DumpOnce is Dump, but tries once (netlink.ErrDumpInterrupted if the answer is inconsistent), and asks after each piece of
// the answer whether to stop. c can only be closed then.
func (c *Conn) DumpOnce(b *Batch, stop func() bool, f func(body []byte)) error {
	seq := c.seq
	c.seq++
	b.seal(seq, b.n-1, unix.NLM_F_DUMP)
	if err := c.send(b.buf); err != nil {
		return err
	}
	var interrupted error
	for {
		piece, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range Messages(piece) {
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
			return ErrStopped
		}
	}
}

// Commit sends the requests of b as one transaction of nftables, which Batch.Transaction began: all of them are done, or none.
// The error is that of the first request that failed. It waits no longer than until the read deadline. Without requests there is
// nothing to do.
func (c *Conn) Commit(b *Batch) error {
	if b.n == 1 { // nobody would confirm it, before 6.10
		return nil
	}
	b.Begin(unix.NFNL_MSG_BATCH_END, 0, nfgenmsg{Res: subsystem})
	b.End()
	first, last := c.seq, c.seq+uint32(b.n)-2 // before 6.10 the kernel confirms no end of a batch
	c.seq += uint32(b.n)
	b.seal(first, b.n-2, unix.NLM_F_ACK)
	if err := c.send(b.buf); err != nil {
		return err
	}
	for {
		piece, err := c.receive()
		if err != nil {
			return err
		}
		for h, body := range Messages(piece) {
			if h.Seq-first > last-first || h.Type != unix.NLMSG_ERROR {
				continue
			}
			if err := answer(h, body); err != nil || h.Seq == last {
				return err
			}
		}
	}
}

// Attach lets the kernel drop what the filter returns 0 of, from now on: it is not even queued. The filter takes the
// place of the one before, with no message between the two.
func (c *Conn) Attach(filter []unix.SockFilter) error {
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	var err error
	rawErr := c.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program)
	})
	return errors.Join(rawErr, err)
}

// Listener takes what a socket hears of its groups. Neither method keeps a body.
type Listener interface {
	Hear(h unix.NlMsghdr, body []byte)
	Lose() // some was lost: the buffer was full, or a message too long
}

// maxPieces is how much is received in one go: then somebody else may want the lock.
const maxPieces = 1 << 17

// Listen waits until there is something to hear, or the deadline is over (os.ErrDeadlineExceeded), and gives l all there is
// under the lock.
func (c *Conn) Listen(lock sync.Locker, l Listener) error {
	var err error
	readErr := c.raw.Read(func(fd uintptr) (any bool) {
		lock.Lock()
		defer lock.Unlock()
		any, err = c.drain(int(fd), l)
		return any || err != nil
	})
	return errors.Join(readErr, err)
}

// Follow gives l all that there is to hear, and that comes, under the lock until ctx ends; then the connection is closed.
func (c *Conn) Follow(ctx context.Context, lock sync.Locker, l Listener) error {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	for ctx.Err() == nil {
		if err := c.Listen(lock, l); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// Drain gives l all that there is to hear now. An error is for Listen, which will meet it as well.
func (c *Conn) Drain(l Listener) {
	c.raw.Control(func(fd uintptr) { c.drain(int(fd), l) })
}

// SyscallConn gives the bare socket; it implements syscall.Conn.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }

// SetReadDeadline bounds Listen in time; the zero time ends that.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.file.SetReadDeadline(t) }

func (c *Conn) drain(fd int, l Listener) (any bool, err error) {
	for range maxPieces {
		n, _, err := unix.Recvfrom(fd, c.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return any, nil
		case err == unix.ENOBUFS || err == nil && n > len(c.buf):
			l.Lose()
		case err != nil:
			return any, err
		default:
			for h, body := range Messages(c.buf[:n]) {
				l.Hear(h, body)
			}
		}
		any = true
	}
	return any, nil
}
