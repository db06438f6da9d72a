package names

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	loopback = 1 // the link that the host's own packets come by, in every namespace
	// idle is how long a connection may be silent.
	idle = 10 * time.Second
)

var native = binary.NativeEndian

// listener answers at one address.
type listener struct {
	gateway
	server *Server
	udp    *net.UDPConn
	tcp    *net.TCPListener
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// open listens at an address.
func (s *Server) open(ctx context.Context, g gateway) (*listener, error) {
	v6 := g.addr.Is6()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) { err = errors.Join(free(fd, v6), tellLink(fd, v6)) })
		return errors.Join(controlErr, err)
	}}
	at := netip.AddrPortFrom(g.addr, s.port).String()
	udp, err := lc.ListenPacket(ctx, "udp", at)
	if err != nil {
		return nil, cannotListen(g.addr, err)
	}
	tcp, err := lc.Listen(ctx, "tcp", at)
	if err != nil {
		udp.Close()
		return nil, cannotListen(g.addr, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &listener{gateway: g, server: s, udp: udp.(*net.UDPConn), tcp: tcp.(*net.TCPListener), cancel: cancel}
	l.ended.Go(func() { l.serveUDP(ctx) })
	l.ended.Go(func() { l.serveTCP(ctx) })
	return l, nil
}

// cannotListen says what to do about it.
func cannotListen(addr netip.Addr, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("names: port %d of %s is another program's, which answers containers instead: see \"ss -lnp sport = :%d\", have it listen "+
			"at its own addresses alone (dnsmasq: bind-dynamic with except-interface), or set names: false", port, addr, port)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("names: this daemon may not listen at port %d of %s: it lacks CAP_NET_BIND_SERVICE, or set names: false", port, addr)
	}
	return fmt.Errorf("names: cannot listen at %s: %w", addr, err)
}

func (l *listener) close() {
	l.cancel()
	_ = l.udp.Close()
	_ = l.tcp.Close()
	l.ended.Wait()
}

// admits says who asks, and whether that is one who may: a container of this host's, which comes by its link, or this host, of
// whose address nobody else can be (the kernel drops such packets from elsewhere as martian). Of a connection nobody knows the
// link, but somebody has answered at the address.
func (l *listener) admits(from netip.Addr, link int, tcp bool) (who asker, ok bool) {
	if link == loopback || from == l.addr {
		return asker{from, true}, true
	}
	own, _ := l.server.InNetwork(from)
	return asker{from, false}, (tcp || link == l.link) && (own || l.subnet.Contains(from))
}

func (l *listener) serveUDP(ctx context.Context) {
	buf, oob := make([]byte, 4<<10), make([]byte, 128)
	for {
		n, oobn, _, from, err := l.udp.ReadMsgUDPAddrPort(buf, oob)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil: // of one packet
			time.Sleep(time.Millisecond)
			continue
		}
		addr := from.Addr().Unmap()
		who, ok := l.admits(addr, linkOf(oob[:oobn]), false)
		if !ok {
			l.server.count(refused)
			continue // no answer: whose address it says it is need not have asked
		}
		if !l.server.limits.hear(addr) {
			l.server.count(dropped)
			continue
		}
		answer := func(m []byte) { _, _ = l.udp.WriteToUDPAddrPort(m, from) }
		if a, later := l.server.handle(ctx, buf[:n], who, false); later != nil {
			query := bytes.Clone(buf[:n])
			l.ended.Go(func() {
				if a := later(query); a != nil {
					answer(a)
				}
			})
		} else if a != nil {
			answer(a)
		}
	}
}

func (l *listener) serveTCP(ctx context.Context) {
	for {
		conn, err := l.tcp.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond)
			continue
		}
		addr := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		who, ok := l.admits(addr, 0, true)
		if !ok {
			l.server.count(refused)
			conn.Close()
			continue
		}
		done, ok := l.server.limits.connect(addr)
		if !ok {
			l.server.count(dropped)
			conn.Close()
			continue
		}
		l.ended.Go(func() {
			defer done()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			l.converse(ctx, conn, who)
		})
	}
}

// converse answers one question after another.
func (l *listener) converse(ctx context.Context, conn net.Conn, who asker) {
	buf := make([]byte, 1<<16)
	for {
		_ = conn.SetDeadline(time.Now().Add(idle))
		query, err := receive(conn, buf, true)
		if err != nil {
			return
		}
		if !l.server.limits.hear(who.addr) {
			l.server.count(dropped)
			return
		}
		answer, later := l.server.handle(ctx, query, who, true)
		if later != nil {
			answer = later(query)
		}
		if answer == nil || send(conn, answer, true) != nil {
			return
		}
	}
}
