package integration

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSlowEtcd has every answer of etcd take five seconds: what flows goes on, and a new host joins all the same.
func TestSlowEtcd(t *testing.T) {
	t.Parallel()
	r := &rig{}
	r.Lab, r.wire, r.etcd = newFaultWire(t, `{"Type":"vxlan"}`)
	slow := newSlowProxy(t, r.Etcd, "172.30.1.100:2479", "127.0.0.1:2379")
	r.etcdURL = "http://172.30.1.100:2479"
	r.hosts = r.NewHosts(r.wire, 2)
	startAll(t, r.hosts)
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b)
	keys := r.keys()

	slow.delay.Store(int64(5 * time.Second))
	r.Put(fakeKey(0), fakeValue(64))
	measure(t, "a new lease reaches the hosts of an etcd that is slow", 10*time.Second, func() {
		for _, h := range r.hosts {
			h.WaitPeers(2)
		}
	})
	late := r.NewHost(r.wire, 13)
	late.Start()
	measure(t, "a host joins by an etcd that is slow", 40*time.Second, late.WaitReady)
	r.stream.Pass(250)

	slow.delay.Store(0)
	r.Delete(fakeKey(0))
	r.hosts = append(r.hosts, late)
	measure(t, "etcd is fast again: all is well", 20*time.Second, func() { r.well(t, keys...) })
}

// slowProxy forwards HTTP/2 connections. What the server answers to requests it holds back, as a server does that is
// slow; the connection itself is as fast as ever.
type slowProxy struct {
	delay atomic.Int64 // nanoseconds
}

func newSlowProxy(t *testing.T, node *Node, listen, to string) *slowProxy {
	t.Helper()
	p := &slowProxy{}
	var l net.Listener
	if err := node.Do(func() (err error) { l, err = net.Listen("tcp", listen); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := node.Dial(t.Context(), "tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go func() { defer out.Close(); _, _ = io.Copy(out, in) }()
			go func() { defer in.Close(); p.forward(in, out) }()
		}
	}()
	return p
}

// frame is an HTTP/2 frame (RFC 9113, section 4.1), and when to pass it on.
type frame struct {
	bytes []byte
	due   time.Time
}

// forward passes on the server's frames: those of type DATA and HEADERS, which answer requests, after the delay.
func (p *slowProxy) forward(to io.Writer, from io.Reader) {
	const headerLen, headers = 9, 1
	var mu sync.Mutex // of to
	write := func(b []byte) { mu.Lock(); defer mu.Unlock(); _, _ = to.Write(b) }
	answers := make(chan frame, 10_000)
	defer close(answers)
	go func() {
		for f := range answers {
			time.Sleep(time.Until(f.due))
			write(f.bytes)
		}
	}()
	for {
		f := frame{bytes: make([]byte, headerLen)}
		if _, err := io.ReadFull(from, f.bytes); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(f.bytes)>>8)
		if _, err := io.ReadFull(from, payload); err != nil {
			return
		}
		kind := f.bytes[3]
		f.bytes = append(f.bytes, payload...)
		if kind > headers {
			write(f.bytes)
			continue
		}
		f.due = time.Now().Add(time.Duration(p.delay.Load()))
		answers <- f
	}
}
