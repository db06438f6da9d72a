package integration

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestEtcdOutOfSpace has etcd's quota used up, so that it takes no writes: hosts with a lease keep it, also over a
// restart; one without is told why, and gets one when there is room.
func TestEtcdOutOfSpace(t *testing.T) {
	t.Parallel()
	r := &rig{}
	r.Lab, r.wire, r.etcd = newFaultWire(t, `{"Type":"vxlan"}`, "--quota-backend-bytes", strconv.Itoa(2<<20))
	r.hosts = r.NewHosts(r.wire, 2)
	startAll(t, r.hosts, "--lease-ttl=10s")
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b, r.b.Addrs[0])
	keys := r.keys()
	eventually(t, "the quota is used up", func() error {
		out, err := r.etcd.tryCtl("put", "/junk", strings.Repeat("x", 120<<10))
		if err == nil {
			return fmt.Errorf("there is room")
		}
		if !strings.Contains(out, "space exceeded") {
			t.Fatal(out)
		}
		return nil
	})
	h := r.hosts[0]
	h.Daemon.Stop(syscall.SIGKILL)
	h.Start("--lease-ttl=10s")
	h.WaitReady()
	late := r.NewHost(r.wire, 13)
	late.Start()
	eventually(t, "the late host says why it has no lease", func() error {
		s, err := late.status()
		if err == nil && (s.Ready || !strings.Contains(s.Stage, "space exceeded")) {
			err = fmt.Errorf("stage %q", s.Stage)
		}
		return err
	})
	time.Sleep(shortTTL + 5*time.Second) // renewals are no writes
	r.stream.Pass(50)

	r.etcd.ctl("compact", strconv.Itoa(r.revision(t)))
	r.etcd.ctl("defrag")
	r.etcd.ctl("alarm", "disarm")
	measure(t, "the late host has a lease", 10*time.Second, late.WaitReady)
	r.hosts = append(r.hosts, late)
	r.well(t, keys...)
}

// TestSlowEtcd has every answer of etcd take five seconds: what flows goes on, and a new host joins all the same.
func TestSlowEtcd(t *testing.T) {
	t.Parallel()
	r := newRigBehind(t)
	keys := r.keys()
	r.delay.set(5 * time.Second)
	r.Put(subnetKey("10.5.64.0/24"), fakeValue(64))
	measure(t, "a new lease reaches the hosts", 20*time.Second, func() {
		for _, h := range r.hosts {
			h.WaitPeers(2)
		}
	})
	late := r.NewHost(r.wire, 13)
	late.Start()
	measure(t, "a host joins", 30*time.Second, late.WaitReady)
	r.stream.Pass(50)
	r.delay.set(0)
	r.Delete(subnetKey("10.5.64.0/24"))
	r.hosts = append(r.hosts, late)
	measure(t, "all is well when etcd is fast again", 20*time.Second, func() { r.well(t, keys...) })
}

// delayRig is a rig whose hosts reach etcd through a proxy.
type delayRig struct {
	*rig
	delay *delayProxy
}

func newRigBehind(t *testing.T) *delayRig {
	t.Helper()
	r := &delayRig{rig: &rig{}}
	r.Lab, r.wire, r.etcd = newFaultWire(t, `{"Type":"vxlan"}`)
	r.delay = newDelayProxy(t, r.Etcd, "172.30.1.100:2479", "127.0.0.1:2379")
	r.etcdURL = "http://172.30.1.100:2479"
	r.hosts = r.NewHosts(r.wire, 2)
	startAll(t, r.hosts)
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b, r.b.Addrs[0])
	return r
}

// delayProxy forwards connections, and holds back what the server says.
type delayProxy struct {
	node *Node
	to   string

	mu    sync.Mutex
	delay time.Duration
}

func newDelayProxy(t *testing.T, node *Node, listen, to string) *delayProxy {
	t.Helper()
	p := &delayProxy{node: node, to: to}
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
			go p.forward(in, out)
		}
	}()
	return p
}

func (p *delayProxy) set(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

func (p *delayProxy) now() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay
}

// chunk is what was read, and when to pass it on.
type chunk struct {
	data []byte
	due  time.Time
}

// forward passes on what comes from out, each piece after the delay.
func (p *delayProxy) forward(in, out net.Conn) {
	chunks := make(chan chunk, 1000)
	go func() {
		defer close(chunks)
		for {
			buf := make([]byte, 32<<10)
			n, err := out.Read(buf)
			if err != nil {
				return
			}
			chunks <- chunk{buf[:n], time.Now().Add(p.now())}
		}
	}()
	defer in.Close()
	for c := range chunks {
		time.Sleep(time.Until(c.due))
		if _, err := in.Write(c.data); err != nil {
			out.Close() // and drain
		}
	}
}
