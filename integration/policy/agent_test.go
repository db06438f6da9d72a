package policy

import (
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netns"
)

// agent is a thread that stays in a container's namespace, and opens sockets there.
type agent struct{ calls chan func() }

// do runs f on the thread.
func (a *agent) do(f func()) {
	done := make(chan struct{})
	a.calls <- func() { defer close(done); f() }
	<-done
}

// open starts the container's thread and servers, which end with the test.
func (p *pod) open() {
	p.t.Helper()
	a := &agent{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromName(p.name)
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		ready <- err
		for f := range a.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		p.t.Fatal(err)
	}
	p.agent = a
	p.t.Cleanup(func() { close(a.calls) })
	for _, s := range services {
		var err error
		switch s.proto {
		case "tcp":
			err = p.serveTCP(s.port)
		case "udp":
			err = p.serveUDP(s.port)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

// serveTCP accepts and closes.
func (p *pod) serveTCP(port uint16) error {
	return p.do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		p.t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		return nil
	})
}

// serveUDP sends back what comes.
func (p *pod) serveUDP(port uint16) error {
	return p.do(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		p.t.Cleanup(func() { _ = c.Close() })
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = c.WriteToUDPAddrPort(buf[:n], from)
				}
			}
		}()
		return nil
	})
}
