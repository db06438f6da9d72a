package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// streamGap is between two datagrams, at least: a machine that is busy sends fewer.
var streamGap = slow * time.Millisecond

const (
	streamDrain  = 5 * time.Second // how long the last answers may take
	streamBuffer = 16 << 20        // of each socket: nothing is lost to a reader that has to wait for its turn
)

// Stream is a steady flow of numbered datagrams from one container to another and back, in each family: a ping that
// remembers which packets are missing.
type Stream struct {
	gap      time.Duration
	from, to *Container
	lanes    []*lane
	sent     atomic.Int64 // by each lane
	began    time.Time
	drops    uint64 // backlogDrops at the start
	stop     chan struct{}
	stopped  chan error

	mu    sync.Mutex
	times []time.Time // by number: when it was sent
}

// lane is what a stream has in one family.
type lane struct {
	conn net.Conn
	echo net.PacketConn

	mu   sync.Mutex
	seen []bool // by number: the answer has come
}

// NewStream starts a flow to the addresses of another container, once they answer a ping: what a container's own
// first moments cost, such as IPv6's detection of duplicate addresses, is not what a stream is about.
func NewStream(from, to *Container) *Stream { return newStream(from, to, streamGap) }

// newStream is NewStream with a gap between two datagrams.
func newStream(from, to *Container, gap time.Duration) *Stream {
	t := from.t
	t.Helper()
	s := &Stream{gap: gap, from: from, to: to, drops: backlogDrops(t), stop: make(chan struct{}), stopped: make(chan error, 1)}
	for _, dst := range to.Addrs {
		eventually(t, "first ping", func() error { return from.PingSize(dst, 100) })
		s.lanes = append(s.lanes, newLane(from, to, dst))
	}
	s.began = time.Now()
	go func() { s.stopped <- s.send() }()
	eventually(t, "first answers", func() error {
		if i := slices.IndexFunc(s.lanes, func(l *lane) bool { return l.heard() == 0 }); i >= 0 {
			return fmt.Errorf("none of %s", to.Addrs[i])
		}
		return nil
	})
	return s
}

func newLane(from, to *Container, dst netip.Addr) *lane {
	t := from.t
	t.Helper()
	l := &lane{}
	var err error
	large := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, streamBuffer); err != nil {
				t.Error(err)
			}
		})
	}
	err = to.Do(func() error {
		l.echo, err = (&net.ListenConfig{Control: large}).ListenPacket(t.Context(), "udp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.echo.Close() })
	err = from.Do(func() error {
		l.conn, err = (&net.Dialer{Control: large}).DialContext(t.Context(), "udp", l.echo.LocalAddr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.conn.Close() })
	go l.answer()
	go l.listen()
	return l
}

func (l *lane) answer() {
	buf := make([]byte, 64)
	for {
		n, from, err := l.echo.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		_, _ = l.echo.WriteTo(buf[:n], from) // a lost answer shows at the other end
	}
}

func (l *lane) listen() {
	buf := make([]byte, 64)
	for {
		n, err := l.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n != 8 {
			continue // an ICMP error: the packet is missing, which is what counts
		}
		number := int(binary.BigEndian.Uint64(buf))
		l.mu.Lock()
		if short := number + 1 - len(l.seen); short > 0 {
			l.seen = append(l.seen, make([]bool, short)...)
		}
		l.seen[number] = true
		l.mu.Unlock()
	}
}

// heard is the number behind the last one that was answered.
func (l *lane) heard() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seen)
}

func (s *Stream) send() error {
	tick := time.NewTicker(s.gap)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return nil
		case <-tick.C: // never one for each that was missed
		}
		s.mu.Lock()
		s.times = append(s.times, time.Now())
		s.mu.Unlock()
		number := binary.BigEndian.AppendUint64(nil, uint64(s.sent.Load()))
		for _, l := range s.lanes {
			if _, err := l.conn.Write(number); err != nil {
				return fmt.Errorf("datagram %d to %s: %w", s.sent.Load(), l.echo.LocalAddr(), err)
			}
		}
		s.sent.Add(1)
	}
}

// Pass waits until count more datagrams have been sent in each family.
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

// lost are the datagrams of a span that have not come back.
func (l *lane) lost(from, to int64) []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lost []int64
	for i := from; i < to; i++ {
		if i >= int64(len(l.seen)) || !l.seen[i] {
			lost = append(lost, i)
		}
	}
	return lost
}

// lost is how many datagrams of a span have not come back.
func (s *Stream) lost(from, to int64) int {
	lost := 0
	for _, l := range s.lanes {
		lost += len(l.lost(from, to))
	}
	return lost
}

// where says which datagrams of a span are lost, and when they were sent, as overlayd's log has the time.
func (s *Stream) where(from, to int64) (where []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const stamp = "15:04:05.000"
	for i, l := range s.lanes {
		if lost := l.lost(from, to); len(lost) > 0 {
			where = append(where, fmt.Sprintf("%d to %s, sent from %s to %s", len(lost), s.to.Addrs[i],
				s.times[lost[0]].UTC().Format(stamp), s.times[lost[len(lost)-1]].UTC().Format(stamp)))
		}
	}
	return where
}

// missing is what is lost of a span for good.
func (s *Stream) missing(from, to int64) int {
	lost := s.lost(from, to)
	for deadline := time.Now().Add(streamDrain); lost > 0 && time.Now().Before(deadline); lost = s.lost(from, to) {
		time.Sleep(10 * time.Millisecond)
	}
	return lost
}

// Stop ends the flow and fails the test if a single datagram is missing that this machine did not drop.
func (s *Stream) Stop() {
	t := s.from.t
	t.Helper()
	s.halt(t)
	sent := s.sent.Load()
	lost := s.missing(0, sent)
	if drops := backlogDrops(t) - s.drops; lost > 0 && uint64(lost) <= drops {
		t.Logf("%d datagrams missing: the machine was too busy and dropped %d packets", lost, drops)
	} else if lost > 0 {
		t.Errorf("stream from %s to %s: %d of %d datagrams missing: %q", s.from.Name, s.to.Name, lost,
			sent*int64(len(s.lanes)), s.where(0, sent))
	}
}

// halt ends the sending, and says how much of it there was.
func (s *Stream) halt(t testing.TB) {
	t.Helper()
	close(s.stop)
	took := time.Since(s.began)
	if err := <-s.stopped; err != nil {
		t.Errorf("stream from %s to %s: %v", s.from.Name, s.to.Name, err)
	}
	t.Logf("measured: a datagram every %v, %d in all, to each of %v",
		(took / time.Duration(max(s.sent.Load(), 1))).Round(10*time.Microsecond), s.sent.Load(), s.to.Addrs)
}

// stopQuietly ends the flow and does not ask what is missing.
func (s *Stream) stopQuietly() {
	close(s.stop)
	<-s.stopped
}

// TestStreamCountsExactly has every hundredth datagram dropped: the stream misses those and no others.
func TestStreamCountsExactly(t *testing.T) {
	t.Parallel()
	lab := newLab(t, both)
	wire := lab.NewSegment(1)
	var ends []*Container
	for i := range 2 {
		c := &Container{Node: lab.node(fmt.Sprintf("end%d", i))}
		wire.Plug(c.Node, "eth0", 11+i)
		for _, a := range wire.Addrs(11 + i) {
			c.Addrs = append(c.Addrs, a.Addr())
		}
		ends = append(ends, c)
	}
	s := NewStream(ends[0], ends[1])
	ends[1].Exec("nft", "add table inet fault; add chain inet fault in { type filter hook input priority 0; };"+
		"add rule inet fault in meta l4proto udp numgen inc mod 100 == 0 counter drop")
	s.Pass(2000)
	s.stopQuietly()
	eventually(t, "what was dropped is missing", func() error {
		missing := s.lost(0, s.sent.Load())
		dropped := ends[1].Exec("nft", "list", "table", "inet", "fault")
		if missing < 20 || !strings.Contains(dropped, fmt.Sprintf("counter packets %d bytes", missing)) {
			return fmt.Errorf("%d of %d datagrams missing, and dropped were\n%s", missing, s.sent.Load(), dropped)
		}
		return nil
	})
}
