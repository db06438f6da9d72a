package udptun

import (
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxPayload   = maxPacketLen - 28 // of a datagram over IPv4
	maxSegments  = 64                // of a datagram that the kernel cuts (UDP_MAX_SEGMENTS before Linux 6.9)
	maxTogether  = 64                // packets that are taken from the link before any is sent
	arenaSize    = 8 * (vnetLen + maxPacketLen)
	headersSize  = 128 << 10
	maxDatagrams = 1024 // that sendmmsg takes at once (UIO_MAXIOV)
)

// message is a datagram to send, or several of one size, of which the last may be shorter.
type message struct {
	host           netip.Addr
	size, len, n   int
	firstIO, numIO int
	shut           bool // nothing may follow
}

// sender is the memory of what takes packets from the link.
type sender struct {
	t        *Tunnel
	s        *socket
	peers    *peers
	arena    []byte
	packets  [][]byte
	headers  []byte
	messages []message
	ios      []unix.Iovec
	wire     []mmsghdr
	names    []unix.RawSockaddrInet4
	controls [][controlLen]byte
	last     struct {
		dest, host netip.Addr
	}
}

// send takes packets from the link, and sends them to hosts, until the link is gone.
func (t *Tunnel) send() {
	runtime.LockOSThread() // which waits for the link and nothing else
	defer t.shut()
	x := &sender{t: t, arena: make([]byte, arenaSize), headers: make([]byte, 0, headersSize)}
	for x.read() {
		x.s, x.peers = t.sends.Load(), t.peers.Load()
		x.last.dest = netip.Addr{}
		for _, p := range x.packets {
			x.take(p)
		}
		x.flush()
	}
}

// read waits for a packet, and takes what there is; false: there will be none any more.
func (x *sender) read() bool {
	x.packets = x.packets[:0]
	room := x.arena
	for {
		n, err := unix.Read(x.t.tun.fd, room[:vnetLen+maxPacketLen])
		switch {
		case err == nil:
			x.packets = append(x.packets, room[:n])
			if room = room[n:]; len(room) < vnetLen+maxPacketLen || len(x.packets) == maxTogether {
				return true
			}
		case err == unix.EINTR:
		case len(x.packets) > 0: // the next read meets the error again
			return true
		case err != unix.EAGAIN:
			if err != unix.EBADFD && err != unix.EFAULT { // the link was deleted
				x.t.log.Error("cannot read from the TUN link", "err", err)
			}
			return false
		case !x.t.tun.wait(unix.POLLIN):
			return false
		}
	}
}

// take makes datagrams of a packet, as the link has it.
func (x *sender) take(b []byte) {
	if len(b) < vnetLen {
		x.t.Malformed.Add(1)
		return
	}
	v, p := decodeVnet(b), b[vnetLen:]
	ip := headerLen(p)
	if ip == 0 {
		if len(p) > 0 && p[0]>>4 == 4 { // what else there is, is IPv6 that a host sends by itself
			x.t.Malformed.Add(1)
		}
		return
	}
	if !age(p) {
		return
	}
	host := x.route(dest(p))
	if !host.IsValid() {
		x.t.NoRoute.Add(1)
		x.t.unreachable(p, ip)
		return
	}
	if v.kind == 0 {
		if v.flags&vnetNeedsChecksum != 0 && v.finish(p) != nil {
			x.t.Malformed.Add(1)
			return
		}
		x.add(host, p, nil)
		return
	}
	s, err := v.cut(p, ip)
	if err != nil {
		x.t.Malformed.Add(1)
		return
	}
	for i := range s.n {
		if cap(x.headers)-len(x.headers) < s.header {
			x.flush()
		}
		at := len(x.headers)
		x.headers = x.headers[:at+s.header]
		header := x.headers[at:]
		x.add(host, header, s.segment(i, header))
	}
}

// route is the host for a destination. Most packets have that of the one before.
func (x *sender) route(to netip.Addr) netip.Addr {
	if to != x.last.dest {
		x.last.dest = to
		x.last.host, _ = x.peers.bySubnet.Lookup(to)
	}
	return x.last.host
}

// add adds a datagram of two parts.
func (x *sender) add(host netip.Addr, a, b []byte) {
	n := len(a) + len(b)
	var m *message
	if len(x.messages) > 0 {
		m = &x.messages[len(x.messages)-1]
	}
	if m == nil || m.shut || m.host != host || n > m.size || m.len+n > maxPayload || m.n == maxSegments || !x.s.gso.Load() {
		x.messages = append(x.messages, message{host: host, size: n, firstIO: len(x.ios)})
		m = &x.messages[len(x.messages)-1]
	}
	m.len += n
	m.n++
	m.shut = n < m.size
	for _, part := range [][]byte{a, b} {
		if len(part) > 0 {
			x.ios = append(x.ios, unix.Iovec{Base: &part[0], Len: uint64(len(part))})
			m.numIO++
		}
	}
}

// flush sends all that there is to send. What the kernel does not take is lost, as on any wire.
func (x *sender) flush() {
	x.encode()
	x.s.use.Lock()
	for i := 0; i < len(x.wire); {
		n, errno := x.s.send(x.wire[i:min(len(x.wire), i+maxDatagrams)])
		switch errno {
		case 0:
			i += n
		case unix.EBADF: // it was closed, for another
			i = len(x.wire)
		default:
			x.refused(i, errno)
			i++
		}
	}
	x.s.use.Unlock()
	x.messages, x.ios, x.headers = x.messages[:0], x.ios[:0], x.headers[:0]
}

// send sends some messages at least, of which it tells how many; the error is that of the first. The socket is in use.
func (s *socket) send(messages []mmsghdr) (int, unix.Errno) {
	for {
		n, errno := sendmmsg(s.fd, messages)
		switch {
		case errno == unix.EINTR:
		case errno != unix.EAGAIN:
			return n, errno
		case !s.wait(unix.POLLOUT):
			return 0, unix.EBADF
		}
	}
}

// encode makes of the messages what the kernel takes.
func (x *sender) encode() {
	n := len(x.messages)
	if cap(x.wire) < n {
		x.wire, x.names, x.controls = make([]mmsghdr, n*2), make([]unix.RawSockaddrInet4, n*2), make([][controlLen]byte, n*2)
	}
	x.wire = x.wire[:n]
	for i, m := range x.messages {
		name, control := &x.names[i], &x.controls[i]
		*name = sockaddr(m.host, x.s.at.Port())
		h := &x.wire[i]
		*h = mmsghdr{Msghdr: unix.Msghdr{
			Name: (*byte)(unsafe.Pointer(name)), Namelen: unix.SizeofSockaddrInet4,
			Iov: &x.ios[m.firstIO], Iovlen: uint64(m.numIO),
		}}
		if m.n > 1 {
			putSegmentSize(control, uint16(m.size))
			h.Control = &control[0]
			h.SetControllen(unix.CmsgSpace(2))
		}
	}
}

// refused deals with a message that the kernel did not take: several datagrams in one are tried one by one.
func (x *sender) refused(i int, errno unix.Errno) {
	m := x.messages[i]
	if m.n == 1 {
		x.unsent(m.host, errno)
		return
	}
	if errno == unix.EIO { // the driver computes no checksums (udp_send_skb in net/ipv4/udp.c)
		if x.s.gso.Swap(false) {
			x.t.log.Info("datagrams are sent one by one: the driver computes no checksums")
		}
	}
	ios := x.ios[m.firstIO : m.firstIO+m.numIO]
	for len(ios) > 0 {
		n, length := 0, 0
		for n < len(ios) && length < m.size {
			length += int(ios[n].Len)
			n++
		}
		one := x.wire[i]
		one.Iov, one.Iovlen, one.Control = &ios[0], uint64(n), nil
		one.SetControllen(0)
		ios = ios[n:]
		if _, errno := x.s.send([]mmsghdr{one}); errno != 0 {
			x.unsent(m.host, errno)
		}
	}
}

func (x *sender) unsent(host netip.Addr, errno unix.Errno) {
	x.t.Unsent.Add(1)
	x.t.said.do(func() { x.t.log.Warn("cannot send", "peer", host, "err", errno) })
}
