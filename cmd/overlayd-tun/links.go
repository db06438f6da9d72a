package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync"

	"github.com/overlayd/overlayd/backend/udptun"
	"github.com/overlayd/overlayd/backend/userspace"
)

// names are those that links of ours may have: whoever asks can make no others, and none takes part in a path.
var names = regexp.MustCompile(`^(overlay[0-9a-z.-]{0,8}|ov[a-z]-[a-z][0-9a-z-]{0,10})$`)

// served is a link that this process serves.
type served interface {
	index() int
	done() <-chan struct{} // closed when the link is gone
	close()                // removes it, and waits until it is gone
	look()                 // puts right what it can
}

// links are those that are served, by name.
type links struct {
	log *slog.Logger

	mu     sync.Mutex
	byName map[string]served
}

func newLinks(log *slog.Logger) *links { return &links{log: log, byName: map[string]served{}} }

// look forgets the links that are gone, and says how many there are.
func (l *links) look() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.byName {
		if s := l.get(name); s != nil {
			s.look()
		}
	}
	return len(l.byName)
}

// get is the link of the name, nil if there is none. One that was deleted or renamed meanwhile is none.
func (l *links) get(name string) served {
	s := l.byName[name]
	if s == nil {
		return nil
	}
	select {
	case <-s.done():
	default:
		if i, err := net.InterfaceByName(name); err == nil && i.Index == s.index() {
			return s
		}
	}
	s.close()
	delete(l.byName, name)
	l.log.Info("link is gone", "link", name)
	return nil
}

func (l *links) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.byName {
		s.close()
	}
	clear(l.byName)
}

// wireGuard makes a wireguard link, where it is not there.
func (l *links) wireGuard(w userspace.WireGuard) error {
	if err := check(w.Name, w.MTU); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.get(w.Name).(type) {
	case *wireGuard:
		return nil
	case nil:
	default:
		return fmt.Errorf("wireguard link %s: it is a link for udp", w.Name)
	}
	s, err := newWireGuard(w, l.log)
	if err != nil {
		return fmt.Errorf("wireguard link %s: %w", w.Name, err)
	}
	l.byName[w.Name] = s
	l.log.Info("serving wireguard", "link", w.Name)
	return nil
}

// udp makes a link for flannel's udp, or brings one there.
func (l *links) udp(u userspace.UDP) error {
	if err := check(u.Name, u.MTU); err != nil {
		return err
	}
	if !u.Local.Is4() || !u.Local.IsGlobalUnicast() && !u.Local.IsLoopback() && !u.Local.IsLinkLocalUnicast() || u.Port == 0 {
		return fmt.Errorf("udp link %s: no host sends from %s, port %d", u.Name, u.Local, u.Port)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	switch s := l.get(u.Name).(type) {
	case *udp:
		err = s.bring(u)
	case nil:
		var made *udp
		if made, err = newUDP(u, l.log); err == nil {
			l.byName[u.Name] = made
			l.log.Info("serving udp", "link", u.Name, "local", u.Local, "port", u.Port)
		}
	default:
		err = errors.New("it is a wireguard link")
	}
	if err != nil {
		return fmt.Errorf("udp link %s: %w", u.Name, err)
	}
	return nil
}

// peers changes the peers of a link for flannel's udp.
func (l *links) peers(p userspace.Peers) error {
	put := make([]udptun.Peer, 0, len(p.Put))
	for _, peer := range p.Put {
		if !peer.Subnet.IsValid() || !peer.Subnet.Addr().Is4() || !peer.Host.Is4() || peer.Host.IsUnspecified() || peer.Host.IsMulticast() {
			return fmt.Errorf("udp link %.20q: no host %s has the subnet %s", p.Link, peer.Host, peer.Subnet)
		}
		put = append(put, udptun.Peer{Subnet: peer.Subnet.Masked(), Host: peer.Host})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.get(p.Link).(*udp)
	if !ok {
		return fmt.Errorf("udp link %.20q is not there", p.Link)
	}
	gone := slices.DeleteFunc(p.Gone, func(subnet netip.Prefix) bool { return !subnet.IsValid() })
	s.tunnel.SetPeers(put, gone)
	return nil
}

// there is what there is, in order of the names.
func (l *links) there() (a userspace.Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range slices.SortedFunc(maps.Keys(l.byName), cmp.Compare) {
		switch s := l.get(name).(type) {
		case *wireGuard:
			a.WireGuard = append(a.WireGuard, userspace.WireGuard{Name: name, MTU: mtu(name)})
		case *udp:
			a.UDP = append(a.UDP, s.state())
		}
	}
	return a
}

// check refuses what no link of ours has.
func check(name string, mtu int) error {
	switch {
	case !names.MatchString(name):
		return fmt.Errorf("no link of overlayd's has the name %.20q", name)
	case mtu < 576 || mtu > 65500:
		return fmt.Errorf("link %s: an MTU of %d is none between 576 and 65500", name, mtu)
	}
	return nil
}
