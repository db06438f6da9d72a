package policy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// floodPort is where sinks listen.
const floodPort = 7500

const denyAll = "{podSelector: {}, policyTypes: [Ingress, Egress]}"

// rounds is how many containers are attached where each could have had luck.
func rounds() int {
	if everything() {
		return 20
	}
	return 3
}

// following are the addresses that the host's next containers will have.
func following(p *pod, count int) []netip.Addr {
	var next []netip.Addr
	for _, a := range p.addrs {
		for range count {
			a = a.Next()
			next = append(next, a)
		}
	}
	return next
}

// TestFirstPackets attaches containers that send from the first moment on, and are sent to: not one packet passes before the
// policy is in force, and without a policy they do.
func TestFirstPackets(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "deny", denyAll))
	last := p.near
	nearSink, farSink := p.outside.sink(t, floodPort), p.far.sink(t, floodPort)
	attach := func(ns string, i int) (in int64, sent int) {
		c := p.plainPod(p.hosts[0], ns, fmt.Sprintf("new%d", i), map[string]string{"app": "new"})
		s := c.sink(t, floodPort)
		out := c.flood(t, floodPort, p.far.addrs[v4], p.far.addrs[v6], p.outside.addrs[v4], p.outside.addrs[v6])
		to := p.far.flood(t, floodPort, following(last, 2)...)
		began := time.Now()
		c.attach()
		attached := time.Now()
		last = c
		time.Sleep(300 * time.Millisecond)
		if s.count.Load() > 0 {
			t.Logf("packets came in from %v to %v of ADD, which took %v", time.Unix(0, s.first.Load()).Sub(began), time.Unix(0, s.last.Load()).Sub(began), attached.Sub(began))
		}
		sent = out()
		to()
		p.settle()
		return s.count.Load(), sent
	}
	for i := range rounds() {
		if in, sent := attach("dev", i); in > 0 || sent == 0 {
			t.Errorf("container %d: %d packets came in, it sent %d times", i, in, sent)
		}
	}
	if n, f := nearSink.count.Load(), farSink.count.Load(); n > 0 || f > 0 {
		t.Errorf("%d packets reached outside, %d the other host", n, f)
	}
	if in, _ := attach("free", 1000); in == 0 || farSink.count.Load() == 0 {
		t.Errorf("without a policy %d packets came in and %d went out: this test shows nothing", in, farSink.count.Load())
	}
	total.addCase()
}

// TestAddWhileTheDaemonIsDown attaches a container with the daemon away: it is attached, nothing passes, and once the daemon is
// there it has what its policies allow.
func TestAddWhileTheDaemonIsDown(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "deny", "{podSelector: {}, "+both+", egress: [{ports: [{port: 80}]}]}"))
	p.check("before")
	h := p.hosts[0]
	h.daemon.Kill()
	c := p.plainPod(h, "dev", "late", map[string]string{"app": "late"})
	c.attach()
	all := p.pods
	p.pods = append(p.pods, c)
	p.expect("the daemon is down", p.everyPair(), func(pr probe) bool {
		return pr.from == pr.to || pr.from != c && pr.to != c && p.world.allows(pr)
	})
	h.start()
	h.waitReady()
	p.check("the daemon is back")
	c.detach()
	p.pods = all
	total.addCase()
}

// TestDaemonComesAndGoes kills, stops and starts the daemon under traffic: what is denied stays so, what is allowed loses nothing.
func TestDaemonComesAndGoes(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}, "+both+", ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}}]}]}"))
	p.check("before")
	s := p.web.sink(t, floodPort)
	l := &living{t: t, port: 7100}
	streams := []*stream{l.open("udp", p.far, p.web, v4), l.open("tcp", p.far, p.web, v6)}
	stop := p.near.flood(t, floodPort, p.web.addrs[v4], p.web.addrs[v6])
	h := p.hosts[0]
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		h.daemon.Stop(sig)
		p.check("the daemon is away")
		h.start()
		h.waitReady()
		p.check("the daemon is back")
	}
	stop()
	p.settle()
	if n := s.count.Load(); n > 0 {
		t.Errorf("%d packets that are denied passed", n)
	}
	for _, s := range streams {
		s.lossless(t)
	}
	total.addCase()
}

// flushedFor is how long others' flush of all rules may open what is closed.
const flushedFor = 20 * time.Millisecond

// TestFlushedRuleset flushes all rules of a host under traffic: nothing passes, or what is denied is closed again at once, and what
// slipped in is cut.
func TestFlushedRuleset(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "deny", "{podSelector: {}}"))
	p.check("before")
	s := p.web.sink(t, floodPort)
	stop := p.near.flood(t, floodPort, p.web.addrs[v4], p.web.addrs[v6])
	answered := p.near.insist(t, p.web.addrs[v4])
	for range 5 {
		p.hosts[0].exec("nft", "flush", "ruleset")
		flushed := time.Now()
		time.Sleep(cutWithin + 200*time.Millisecond)
		n, open := s.count.Swap(0), time.Unix(0, s.last.Load()).Sub(time.Unix(0, s.first.Swap(0)))
		if n > 0 {
			t.Logf("%d packets passed, within %v", n, open)
		}
		if late := time.Unix(0, s.last.Load()).Sub(flushed); n > 0 && (late > limit() || everything() && open > flushedFor) {
			t.Errorf("after a flush %d packets passed within %v, the last %v after it", n, open, late)
		}
		if late := time.Unix(0, answered.Load()).Sub(flushed); late > limit() {
			t.Errorf("a connection that slipped in lives %v later", late)
		}
	}
	stop()
	p.check("after")
	total.addCase()
}

// insist sends on one connection of UDP to a server, which answers, every millisecond, and notes when an answer came last.
func (p *pod) insist(t *testing.T, to netip.Addr) *atomic.Int64 {
	t.Helper()
	c, err := p.dialUDP(to, 80)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	go func() {
		defer c.Close()
		for ctx.Err() == nil {
			_, _ = c.Write([]byte("let me in"))
			time.Sleep(time.Millisecond)
		}
	}()
	answered := &atomic.Int64{}
	go func() {
		b := make([]byte, 100)
		for {
			if n, err := c.Read(b); n > 0 {
				answered.Store(time.Now().UnixNano())
			} else if errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
	return answered
}

// TestAddressIsReused has a container leave and another of another namespace get its address: it is nothing of what the first was.
func TestAddressIsReused(t *testing.T) {
	p := newPaths(t)
	p.apply("prod", netpolText("prod", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: first}}}]}]}"))
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: first}}}"))
	base := p.pods
	first := p.plainPod(p.hosts[0], "dev", "first", map[string]string{"app": "first"})
	first.attach()
	p.pods = append(base[:len(base):len(base)], first)
	p.check("the first")
	first.detach()
	second := p.plainPod(p.hosts[0], "other", "second", map[string]string{"app": "second"})
	second.publish = fmt.Sprintf(`{"ips":[%q,%q]}`, first.addrs[v4], first.addrs[v6])
	second.attach()
	if second.addrs != first.addrs {
		t.Fatalf("the second has %v, not %v", second.addrs, first.addrs)
	}
	p.pods = append(base[:len(base):len(base)], second)
	p.check("the second, with the first's addresses")
	second.detach()
	total.addCase()
}

// TestContainerMoves has a container leave a host and come to another, with other addresses.
func TestContainerMoves(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}, "+both+", ingress: [{from: [{podSelector: {matchLabels: {app: mover}}}]}], egress: [{to: [{podSelector: {matchLabels: {app: mover}}}]}]}"))
	p.apply("dev", netpolText("dev", "q", "{podSelector: {matchLabels: {app: mover}}, ingress: [{ports: [{port: 80}]}]}"))
	base := p.pods
	for i := range 4 {
		c := p.newPod(p.hosts[i%2], "dev", "mover", map[string]string{"app": "mover"})
		p.pods = append(base[:len(base):len(base)], c)
		p.check(fmt.Sprintf("move %d", i))
		c.detach()
	}
	p.pods = base
	p.check("it has left")
	total.addCase()
}
