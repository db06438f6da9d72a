package policy

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// sink counts the datagrams that come to a port of a container's.
type sink struct {
	count       atomic.Int64
	first, last atomic.Int64 // when, as Unix nanoseconds
}

func (p *pod) sink(t testing.TB, port uint16) *sink {
	t.Helper()
	s := &sink{}
	if err := p.do(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 100)
			for {
				if _, _, err := c.ReadFromUDPAddrPort(b); err != nil {
					return
				}
				now := time.Now().UnixNano()
				s.count.Add(1)
				s.first.CompareAndSwap(0, now)
				s.last.Store(now)
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// flood sends datagrams to all addresses, each a new connection, every millisecond, until stop is called, which returns how often
// it was. What cannot be sent yet is no failure: a container has no address at first.
func (p *pod) flood(t testing.TB, port uint16, to ...netip.Addr) (stop func() int) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan int)
	go func() {
		rounds := 0
		defer func() { ended <- rounds }()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			p.agent.do(func() {
				for _, a := range to {
					sendOnce(a, port)
				}
			})
			rounds++
		}
	}()
	stopped := false
	stop = func() int {
		if stopped {
			return 0
		}
		stopped = true
		close(done)
		return <-ended
	}
	t.Cleanup(func() { stop() })
	return stop
}
