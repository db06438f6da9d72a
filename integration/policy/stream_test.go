package policy

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// stream is a connection of which both sides talk all the time, unasked.
type stream struct {
	name     string
	up, down talk // from the client, from the server
	stopped  chan struct{}
	senders  sync.WaitGroup
	once     sync.Once
}

// talk is one direction of a stream.
type talk struct {
	sent, received atomic.Int64
	last           atomic.Int64 // when something came, as Unix nanoseconds
}

// pace is how often each side says something.
const pace = 5 * time.Millisecond

// openStream connects a client with a server of its own that listens on port of the container; to is where the client looks for
// it, which is the container itself or an address that is translated.
func openStream(t testing.TB, proto string, client, server *pod, to netip.AddrPort, port uint16) *stream {
	t.Helper()
	s := &stream{name: fmt.Sprintf("%s %s to %s by %s", proto, client.podName, server.podName, to), stopped: make(chan struct{})}
	answered, err := s.serve(t, proto, server, to.Addr().Is6(), port)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	var conn net.Conn
	eventually(t, s.name+" is open", func() error {
		if err := client.do(func() (err error) {
			conn, err = (&net.Dialer{Timeout: 2 * time.Second}).Dial(proto, to.String())
			return err
		}); err != nil {
			return err
		}
		_, err := conn.Write([]byte("hello"))
		if err != nil {
			return err
		}
		select {
		case <-answered:
			return nil
		case <-time.After(time.Second):
			_ = conn.Close()
			return fmt.Errorf("the server hears nothing")
		}
	})
	t.Cleanup(func() { s.stop(); _ = conn.Close() })
	go s.hear(&s.down, conn)
	s.send(&s.up, func(b []byte) error { _, err := conn.Write(b); return err })
	eventually(t, s.name+" talks", func() error {
		if s.up.received.Load() == 0 || s.down.received.Load() == 0 {
			return fmt.Errorf("up %d, down %d", s.up.received.Load(), s.down.received.Load())
		}
		return nil
	})
	return s
}

// serve listens; answered is closed once a client is there and is talked to.
func (s *stream) serve(t testing.TB, proto string, server *pod, six bool, port uint16) (answered chan struct{}, err error) {
	answered = make(chan struct{})
	network := proto + "4"
	if six {
		network = proto + "6"
	}
	return answered, server.do(func() error {
		if proto == "tcp" {
			l, err := net.Listen(network, fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { _ = c.Close() })
				close(answered)
				s.send(&s.down, func(b []byte) error { _, err := c.Write(b); return err })
				s.hear(&s.up, c)
			}()
			return nil
		}
		c, err := net.ListenPacket(network, fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			b := make([]byte, 100)
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			close(answered)
			s.send(&s.down, func(b []byte) error { _, err := c.WriteTo(b, from); return err })
			s.hear(&s.up, reader{c})
		}()
		return nil
	})
}

// reader reads datagrams of whomever.
type reader struct{ net.PacketConn }

func (r reader) Read(b []byte) (int, error) {
	n, _, err := r.ReadFrom(b)
	return n, err
}

// message is what is said, so that bytes of TCP can be counted as messages.
const message = "12345678"

func (s *stream) send(d *talk, write func([]byte) error) {
	s.senders.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case <-s.stopped:
				return
			case <-tick.C:
				if err := write([]byte(message)); err == nil {
					d.sent.Add(1)
				}
			}
		}
	})
}

func (s *stream) hear(d *talk, from interface{ Read([]byte) (int, error) }) {
	b := make([]byte, 1<<16)
	var bytes int64
	for {
		n, err := from.Read(b)
		if err != nil && n == 0 {
			select {
			case <-s.stopped:
				return
			default:
			}
			if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
				if _, datagrams := from.(reader); !datagrams {
					return
				}
				time.Sleep(time.Millisecond) // an error that ICMP told
			}
			continue
		}
		bytes += int64(n)
		d.received.Store(bytes / int64(len(message)))
		d.last.Store(time.Now().UnixNano())
	}
}

// stop ends both sides' talking.
func (s *stream) stop() { s.once.Do(func() { close(s.stopped); s.senders.Wait() }) }

// diedWithin fails unless nothing came in either direction later than limit after a time; it looks until there was nothing for a second.
func (s *stream) diedWithin(t testing.TB, since time.Time, limit time.Duration) {
	t.Helper()
	for time.Since(since) < limit+time.Second {
		if last := max(s.up.last.Load(), s.down.last.Load(), since.UnixNano()); time.Since(time.Unix(0, last)) > time.Second {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	for name, d := range map[string]*talk{"to the server": &s.up, "to the client": &s.down} {
		if late := time.Unix(0, d.last.Load()).Sub(since); late > limit {
			t.Errorf("%s: %v after it was forbidden something still comes %s", s.name, late, name)
		}
	}
}

// lossless ends a stream of datagrams and fails if one is missing; of TCP it fails if the talk has stopped.
func (s *stream) lossless(t testing.TB) {
	t.Helper()
	before := [2]int64{s.up.received.Load(), s.down.received.Load()}
	eventually(t, s.name+" goes on", func() error {
		if s.up.received.Load() <= before[0] || s.down.received.Load() <= before[1] {
			return fmt.Errorf("up %d, down %d messages, and no more", s.up.received.Load(), s.down.received.Load())
		}
		return nil
	})
	s.stop()
	eventually(t, s.name+" has lost nothing", func() error {
		if u, d := s.up.sent.Load()-s.up.received.Load(), s.down.sent.Load()-s.down.received.Load(); u > 0 || d > 0 {
			return fmt.Errorf("lost %d of %d messages to the server, %d of %d to the client", u, s.up.sent.Load(), d, s.down.sent.Load())
		}
		return nil
	})
}
