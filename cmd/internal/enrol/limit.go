package enrol

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// guesses is how many wrong secrets in a row an address may show; it has one more each guessPause.
	guesses    = 10
	guessPause = 10 * time.Second
	// allGuesses is how many wrong secrets a second are answered at all, whoever shows them. Right ones do not wait for them.
	allGuesses = 5
	// maxAddresses is of how many addresses it is remembered.
	maxAddresses = 4096
	// maxConns and maxConnsPerAddress bound the connections that are open at a time: a host needs one for a second.
	maxConns, maxConnsPerAddress = 256, 32
)

// guard makes guessing slow.
type guard struct {
	mu  sync.Mutex
	by  map[netip.Prefix]*rate.Limiter
	all *rate.Limiter
}

func newGuard() *guard {
	return &guard{by: map[netip.Prefix]*rate.Limiter{}, all: rate.NewLimiter(allGuesses, allGuesses)}
}

// neighbourhood is what counts as one address: who has an IPv6 address has a /64 of them.
func neighbourhood(ip netip.Addr) netip.Prefix {
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // the length fits
	return p
}

// allows says whether an address may try a secret.
func (g *guard) allows(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.by[neighbourhood(from)]
	return l == nil || l.Tokens() >= 1
}

// wrong counts a wrong secret against the address, and waits until it is to be answered.
func (g *guard) wrong(ctx context.Context, from netip.Addr) {
	g.mu.Lock()
	at := neighbourhood(from)
	l := g.by[at]
	if l == nil {
		if len(g.by) >= maxAddresses {
			g.forget()
		}
		l = rate.NewLimiter(rate.Every(guessPause), guesses)
		g.by[at] = l
	}
	l.Allow()
	g.mu.Unlock()
	_ = g.all.Wait(ctx) // the client has gone: nobody waits for the answer
}

// forget drops the addresses that have made no mistake for long; if there is none, all: those who guess from so many are
// held by the limit of all.
func (g *guard) forget() {
	for at, l := range g.by {
		if l.Tokens() >= guesses {
			delete(g.by, at)
		}
	}
	if len(g.by) >= maxAddresses {
		clear(g.by)
	}
}

// limited is a listener with a bound on the connections that are open, of each address and in all. One too many is closed.
type limited struct {
	net.Listener

	mu   sync.Mutex
	open int
	by   map[netip.Prefix]int
}

// Accept returns the next connection within the bounds.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		at := neighbourhood(addrOf(conn.RemoteAddr()))
		if l.take(at) {
			return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { l.release(at) })}, nil
		}
		conn.Close()
	}
}

func (l *limited) take(at netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= maxConns || l.by[at] >= maxConnsPerAddress {
		return false
	}
	l.open++
	l.by[at]++
	return true
}

func (l *limited) release(at netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.by[at]--; l.by[at] == 0 {
		delete(l.by, at)
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close closes the connection, and makes room for another.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// addrOf is the address of one end of a TCP connection; zero if it is none.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
