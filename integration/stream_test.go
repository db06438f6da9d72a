package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	streamGap   = 5 * time.Millisecond // between two datagrams: shorter than any restart of anything
	streamDrain = 5 * time.Second      // how long the last answers may take
)

// Stream is a steady flow of numbered datagrams from one container to another and back: a ping that remembers
// which packets are missing.
type Stream struct {
	from, to *Container
	conn     net.Conn
	echo     net.PacketConn
	sent     atomic.Int64
	seen     sync.Map // number → struct{}
	answered atomic.Int64
	drops    uint64 // backlogDrops at the start
	stop     chan struct{}
	stopped  chan error
}

// NewStream starts a flow to the address of another container, once that answers a ping: what a container's own
// first moments cost, such as IPv6's detection of duplicate addresses, is not what a stream is about.
func NewStream(from, to *Container, dst netip.Addr) *Stream {
	t := from.t
	t.Helper()
	eventually(t, "first ping", func() error { return from.PingSize(dst, 100) })
	s := &Stream{from: from, to: to, drops: backlogDrops(t), stop: make(chan struct{}), stopped: make(chan error, 1)}
	err := to.Do(func() (err error) {
		s.echo, err = net.ListenPacket("udp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.echo.Close() })
	if s.conn, err = from.Dial(t.Context(), "udp", s.echo.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	go s.answer()
	go s.listen()
	go func() { s.stopped <- s.send() }()
	eventually(t, "first answer of "+dst.String(), func() error {
		if s.answered.Load() == 0 {
			return errors.New("none")
		}
		return nil
	})
	return s
}

func (s *Stream) answer() {
	buf := make([]byte, 64)
	for {
		n, from, err := s.echo.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		_, _ = s.echo.WriteTo(buf[:n], from) // a lost answer shows at the other end
	}
}

func (s *Stream) listen() {
	buf := make([]byte, 64)
	for {
		n, err := s.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n != 8 {
			continue // an ICMP error: the packet is missing, which is what counts
		}
		if _, twice := s.seen.LoadOrStore(binary.BigEndian.Uint64(buf), struct{}{}); !twice {
			s.answered.Add(1)
		}
	}
}

func (s *Stream) send() error {
	tick := time.NewTicker(streamGap)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return nil
		case <-tick.C:
		}
		number := uint64(s.sent.Load())
		if _, err := s.conn.Write(binary.BigEndian.AppendUint64(nil, number)); err != nil {
			return fmt.Errorf("datagram %d: %w", number, err)
		}
		s.sent.Add(1)
	}
}

// Pass waits until count more datagrams have been sent.
func (s *Stream) Pass(count int64) {
	s.from.t.Helper()
	goal := s.sent.Load() + count
	eventually(s.from.t, "the stream goes on", func() error {
		select {
		case err := <-s.stopped:
			s.stopped <- err
			return err
		default:
		}
		if n := s.sent.Load(); n < goal {
			return fmt.Errorf("%d datagrams sent, want %d", n, goal)
		}
		return nil
	})
}

// Stop ends the flow and fails the test if a single datagram is missing that this machine did not drop.
func (s *Stream) Stop() {
	t := s.from.t
	t.Helper()
	close(s.stop)
	if err := <-s.stopped; err != nil {
		t.Errorf("stream from %s to %s: %v", s.from.Name, s.to.Name, err)
	}
	sent := s.sent.Load()
	for deadline := time.Now().Add(streamDrain); time.Now().Before(deadline) && s.answered.Load() < sent; {
		time.Sleep(streamGap)
	}
	var missing []uint64
	for i := range uint64(sent) {
		if _, ok := s.seen.Load(i); !ok {
			missing = append(missing, i)
		}
	}
	if drops := backlogDrops(t) - s.drops; len(missing) > 0 && uint64(len(missing)) <= drops {
		t.Logf("%d of %d datagrams missing: the machine was too busy and dropped %d packets", len(missing), sent, drops)
	} else if len(missing) > 0 {
		t.Errorf("stream from %s to %s: %d of %d datagrams missing, first %d, last %d",
			s.from.Name, s.to.Name, len(missing), sent, missing[0], missing[len(missing)-1])
	}
}

// stopQuietly ends the flow and does not ask what is missing.
func (s *Stream) stopQuietly() {
	close(s.stop)
	<-s.stopped
}
