package integration

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// Conversation is a TCP connection from one container to another over which a byte goes there and back every few
// milliseconds.
type Conversation struct {
	t       testing.TB
	name    string
	conn    net.Conn
	longest atomic.Int64  // wait for an answer since the last call of Longest, in nanoseconds
	ended   chan struct{} // closed when the connection has
}

// NewConversation connects to an address of another container.
func NewConversation(from, to *Container, dst netip.Addr) *Conversation {
	t := from.t
	t.Helper()
	var l net.Listener
	err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &Conversation{t: t, name: fmt.Sprintf("conversation of %s with %s", from.Name, dst), ended: make(chan struct{})}
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			close(accepted)
			return
		}
		accepted <- conn
	}()
	if c.conn, err = from.Dial(t.Context(), "tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	there, ok := <-accepted
	if !ok {
		t.Fatalf("%s: not accepted", c.name)
	}
	t.Cleanup(func() { c.conn.Close(); there.Close() })
	go func() { _, _ = io.Copy(there, there) }() // how it ends is seen at the other side
	go c.talk()
	return c
}

func (c *Conversation) talk() {
	defer close(c.ended)
	buf := []byte{0}
	for {
		begin := time.Now()
		if _, err := c.conn.Write(buf); err != nil {
			return
		}
		if _, err := io.ReadFull(c.conn, buf); err != nil {
			return
		}
		c.longest.Store(max(c.longest.Load(), int64(time.Since(begin))))
		time.Sleep(streamGap)
	}
}

// Longest is how long the longest answer since the last call took.
func (c *Conversation) Longest() time.Duration { return time.Duration(c.longest.Swap(0)) }

// Stop ends the conversation and fails the test if it has ended before.
func (c *Conversation) Stop() {
	c.t.Helper()
	select {
	case <-c.ended:
		c.t.Errorf("%s has ended", c.name)
	default:
	}
	c.conn.Close()
	<-c.ended
}

// traffic is all the kinds of packets between two containers, each way and in each family.
type traffic struct {
	t       testing.TB
	streams []*Stream
	talks   []*Conversation
	drops   uint64
	from    []int64 // of each stream: the first datagram of this part
}

func newTraffic(a, b *Container) *traffic { return newTrafficEvery(streamGap, a, b) }

// userSpaceGap is between two datagrams that processes carry: on a machine that is busy with other things they take as much time as
// they get, and what waits for them too long would seem to be lost.
const userSpaceGap = 10 * time.Millisecond

// newTrafficEvery is newTraffic with a gap between two datagrams.
func newTrafficEvery(gap time.Duration, a, b *Container) *traffic {
	a.t.Helper()
	x := &traffic{t: a.t}
	for _, pair := range [][2]*Container{{a, b}, {b, a}} {
		x.streams = append(x.streams, newStream(pair[0], pair[1], gap))
		for _, dst := range pair[1].Addrs {
			x.talks = append(x.talks, NewConversation(pair[0], pair[1], dst))
		}
	}
	x.begin()
	return x
}

// begin begins a part.
func (x *traffic) begin() {
	x.drops, x.from = backlogDrops(x.t), nil
	for _, s := range x.streams {
		x.from = append(x.from, s.sent.Load())
	}
	for _, c := range x.talks {
		c.Longest()
	}
}

// end ends a part and returns how many datagrams were sent in it, how many of those are missing, and where.
func (x *traffic) end() (missing int, sent int64, where []string) {
	x.t.Helper()
	for i, s := range x.streams {
		s.Pass(100)
		last := s.sent.Load()
		missing += s.missing(x.from[i], last)
		where = append(where, s.where(x.from[i], last)...)
		sent += (last - x.from[i]) * int64(len(s.lanes))
	}
	if drops := backlogDrops(x.t) - x.drops; missing > 0 && uint64(missing) <= drops {
		x.t.Logf("%d datagrams missing: the machine was too busy and dropped %d packets", missing, drops)
		missing = 0
	}
	return missing, sent, where
}

// lossless runs a part in which no datagram may be missing.
func (x *traffic) lossless(name string, part func()) {
	x.t.Helper()
	x.begin()
	part()
	missing, sent, where := x.end()
	if missing > 0 {
		x.t.Errorf("%s: %d of %d datagrams missing: %q", name, missing, sent, where)
	}
	x.t.Logf("measured: %s: %d of %d datagrams missing, longest answer over TCP %v", name, missing, sent, x.longest())
}

func (x *traffic) longest() time.Duration {
	var longest []time.Duration
	for _, c := range x.talks {
		longest = append(longest, c.Longest())
	}
	return slices.Max(longest).Round(time.Millisecond)
}

// stop ends it all.
func (x *traffic) stop() {
	x.t.Helper()
	for _, c := range x.talks {
		c.Stop()
	}
	for _, s := range x.streams {
		s.halt(x.t)
	}
}
