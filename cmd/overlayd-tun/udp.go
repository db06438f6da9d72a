package main

import (
	"log/slog"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/udptun"
	"github.com/overlayd/overlayd/backend/userspace"
)

// udp is a link for flannel's udp.
type udp struct {
	name   string
	number int // its index
	tunnel *udptun.Tunnel
}

// newUDP makes a link, up, without peers.
func newUDP(u userspace.UDP, log *slog.Logger) (*udp, error) {
	if err := udptun.Check(netip.AddrPortFrom(u.Local, u.Port)); err != nil {
		return nil, err // before there is a link: that one comes and goes has the daemon try again at once
	}
	fd, err := openTUN(u.Name)
	if err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(u.Name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &udp{name: u.Name, number: link.Index}
	s.tunnel, err = udptun.Open(udptun.Config{
		TUN: fd, Local: u.Local, Port: u.Port, NoGSO: brokenGSO(), Log: log.With("link", u.Name),
	})
	if err != nil {
		return nil, err
	}
	if err := setUp(u.Name, alias(u), u.MTU); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// bring changes what differs. Peers stay.
func (s *udp) bring(u userspace.UDP) error {
	if err := s.tunnel.Move(u.Local, u.Port); err != nil {
		return err
	}
	return setUp(u.Name, alias(u), u.MTU)
}

func alias(u userspace.UDP) string { return kernel.UDPTun{Local: u.Local, Port: u.Port}.Alias() }

func (s *udp) index() int            { return s.number }
func (s *udp) done() <-chan struct{} { return s.tunnel.Done() }
func (s *udp) close()                { s.tunnel.Close() }
func (s *udp) look()                 {}

// state is the link as it is.
func (s *udp) state() userspace.UDP {
	at := s.tunnel.At()
	u := userspace.UDP{Name: s.name, Local: at.Addr(), Port: at.Port(), MTU: mtu(s.name)}
	for _, p := range s.tunnel.Peers() {
		u.Peers = append(u.Peers, userspace.Peer{Subnet: p.Subnet, Host: p.Host})
	}
	return u
}
