package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// volley is what one container sends at once. All of it runs on the container's thread.
type volley struct {
	shots  []*shot
	source int    // port, used by no other volley
	run    int    // in every datagram, so that late answers to others do not count
	udp    [2]int // a socket of each family
	icmp   [2]int
	err    error
}

// open opens the sockets, and sends.
func (v *volley) open() {
	for f, domain := range []int{unix.AF_INET, unix.AF_INET6} {
		v.udp[f] = v.socket(domain, unix.SOCK_DGRAM, 0)
		v.icmp[f] = v.socket(domain, unix.SOCK_RAW, []int{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}[f])
		v.bind(v.udp[f], f)
	}
	for i, s := range v.shots {
		if s.proto == "tcp" {
			s.fd = v.socket([]int{unix.AF_INET, unix.AF_INET6}[s.family], unix.SOCK_STREAM, 0)
			v.note(unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
			v.note(unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			v.bind(s.fd, s.family)
			if err := unix.Connect(s.fd, sockaddr(s.to.addrs[s.family], s.port)); !errors.Is(err, unix.EINPROGRESS) {
				v.note(err)
			}
		} else {
			v.send(i)
		}
	}
}

func (v *volley) note(err error) {
	if v.err == nil && err != nil {
		v.err = err
	}
}

func (v *volley) socket(domain, kind, proto int) int {
	fd, err := unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	v.note(err)
	return fd
}

func (v *volley) bind(fd, family int) {
	a := netip.IPv4Unspecified()
	if family == v6 {
		a = netip.IPv6Unspecified()
		v.note(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err := unix.Bind(fd, sockaddr(a, uint16(v.source))); err != nil {
		v.note(fmt.Errorf("bind to port %d: %w", v.source, err))
	}
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
}

// send sends the datagram of a shot: the run and the shot's number. A send that the kernel refuses is one that does not arrive.
func (v *volley) send(i int) {
	s := v.shots[i]
	payload := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(v.run)), uint32(i))
	if s.proto == "udp" {
		_ = unix.Sendto(v.udp[s.family], payload, 0, sockaddr(s.to.addrs[s.family], s.port))
		return
	}
	echo := []byte{8, 0, 0, 0, byte(v.run >> 8), byte(v.run), byte(i >> 8), byte(i)} // identifier: the run
	if s.family == v6 {
		echo[0] = 128 // the kernel has the checksum
	}
	echo = append(echo, payload...)
	if s.family == v4 {
		binary.BigEndian.PutUint16(echo[2:], checksum(echo))
	}
	_ = unix.Sendto(v.icmp[s.family], echo, 0, sockaddr(s.to.addrs[s.family], 0))
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// resend is how long a datagram that should be answered is waited for before it is sent again.
const resend = 250 * time.Millisecond

// collect takes answers until all that are wanted are there, or the time is over; it always looks once.
func (v *volley) collect(most time.Duration) {
	start := time.Now()
	again := start.Add(resend)
	for {
		missing := v.read()
		now := time.Now()
		if missing == 0 || now.Sub(start) >= most || v.err != nil {
			return
		}
		if now.After(again) {
			for i, s := range v.shots {
				if s.want && !s.got && s.proto != "tcp" {
					v.send(i)
				}
			}
			again = now.Add(resend)
		}
		v.wait()
	}
}

// wait sleeps until something may have come, or a little.
func (v *volley) wait() {
	var fds []unix.PollFd
	for f := range v.udp {
		fds = append(fds, unix.PollFd{Fd: int32(v.udp[f]), Events: unix.POLLIN}, unix.PollFd{Fd: int32(v.icmp[f]), Events: unix.POLLIN})
	}
	for _, s := range v.shots {
		if s.fd >= 0 && !s.got {
			fds = append(fds, unix.PollFd{Fd: int32(s.fd), Events: unix.POLLOUT})
		}
	}
	_, _ = unix.Poll(fds, 50)
}

// read takes what has come, and returns how many answers that are wanted are still missing.
func (v *volley) read() (missing int) {
	buf := make([]byte, 2048)
	for f := range v.udp {
		for _, fd := range []int{v.udp[f], v.icmp[f]} {
			for {
				n, _, err := unix.Recvfrom(fd, buf, 0)
				if err != nil {
					break
				}
				v.answer(f, fd == v.icmp[f], buf[:n])
			}
		}
	}
	for _, s := range v.shots {
		if s.fd >= 0 && !s.got {
			s.got = connected(s.fd)
		}
		if s.want && !s.got {
			missing++
		}
	}
	return missing
}

// answer marks the shot that a datagram answers.
func (v *volley) answer(family int, icmp bool, b []byte) {
	if icmp {
		if family == v4 { // raw sockets of IPv4 have the header too
			if len(b) < 20 || len(b) < int(b[0]&15)*4 {
				return
			}
			b = b[int(b[0]&15)*4:]
		}
		if len(b) < 16 || (b[0] != 0 && b[0] != 129) { // echo reply
			return
		}
		b = b[8:]
	}
	if len(b) != 8 || binary.BigEndian.Uint32(b) != uint32(v.run) {
		return
	}
	if i := int(binary.BigEndian.Uint32(b[4:])); i < len(v.shots) {
		v.shots[i].got = true
	}
}

// connected tells whether a connection was answered, be it by a reset.
func connected(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
		return false
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && (code == 0 || unix.Errno(code) == unix.ECONNRESET || unix.Errno(code) == unix.ECONNREFUSED)
}

func (v *volley) close() {
	for f := range v.udp {
		_, _ = unix.Close(v.udp[f]), unix.Close(v.icmp[f])
	}
	for _, s := range v.shots {
		if s.fd >= 0 {
			_ = unix.Close(s.fd)
		}
	}
}

// echoOnEachCPU sends a datagram to a server from each processor, twice, and waits for the answer.
func echoOnEachCPU(to netip.Addr) error {
	var home unix.CPUSet
	if err := unix.SchedGetaffinity(0, &home); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &home) }()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to, 80)); err != nil {
		return err
	}
	wait := unix.Timeval{Usec: 300_000}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return err
	}
	for cpu := range runtime.NumCPU() {
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			continue // one that this process may not have
		}
		for i := range 2 {
			if err := echo(fd, []byte{byte(cpu), byte(i)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// echo sends until the same comes back.
func echo(fd int, b []byte) error {
	var err error
	for range 20 {
		if _, err = unix.Write(fd, b); err != nil {
			continue
		}
		buf := make([]byte, 16)
		for {
			var n int
			if n, err = unix.Read(fd, buf); err != nil {
				break
			}
			if string(buf[:n]) == string(b) {
				return nil
			}
		}
	}
	return fmt.Errorf("no echo: %w", err)
}

// sendOnce sends one datagram from a port of its own.
func sendOnce(to netip.Addr, port uint16) {
	domain := unix.AF_INET
	if to.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = unix.Sendto(fd, []byte("flood"), 0, sockaddr(to, port))
	_ = unix.Close(fd)
}
