package etcdstore

import (
	"net"
	"sync"
	"testing"
)

// proxy is a TCP proxy that can lose its connections, or swallow what they carry.
type proxy struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	turned *sync.Cond // the mode changed
	mode   mode
	conns  map[net.Conn]bool
	opened int
}

type mode uint8

const (
	pass    mode = iota
	refuse       // cuts what is open, and what comes
	swallow      // takes everything and forwards nothing
	hold         // forwards everything, but not before the mode changes: as if the host were paused
)

func startProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.turned = sync.NewCond(&p.mu)
	go p.accept()
	t.Cleanup(func() { l.Close(); p.set(refuse) })
	return p
}

func (p *proxy) endpoint() string { return "http://" + p.listener.Addr().String() }

// set changes the mode; connections that are open follow it. Those that lost something end with that: TCP has no gaps.
func (p *proxy) set(m mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := p.mode == swallow && m != swallow
	p.mode = m
	p.turned.Broadcast()
	if m == refuse || lost {
		for c := range p.conns {
			c.Close()
		}
		clear(p.conns)
	}
}

// used says how many connections were ever opened.
func (p *proxy) used() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

func (p *proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		if p.mode == refuse {
			in.Close()
			out.Close()
		} else {
			p.conns[in], p.conns[out] = true, true
			p.opened++
			go p.copy(in, out)
			go p.copy(out, in)
		}
		p.mu.Unlock()
	}
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if p.passes() {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// passes says whether what was read is to be forwarded; on hold it waits until that is known.
func (p *proxy) passes() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.mode == hold {
		p.turned.Wait()
	}
	return p.mode == pass
}
