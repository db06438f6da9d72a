package fastpath

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// What one of 60,000 peers does costs no more than what one of few does.
func TestEventAmongManyPeers(t *testing.T) {
	p, err := New(Config{Namespace: nstest.New(t), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f := families["IPv4"]
	p.SetOwn(Own{Underlay: 1, MTU: 1400, Tunnels: []Tunnel{{Addr: f.host, Port: 8472, VNI: 1, MAC: vtep}}})
	claim := func(i int, host netip.Addr) Claim {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		return Claim{subnet.String(), []Peer{{Subnet: subnet, Host: host, MAC: peerVTEP, VNI: 1, Port: 8472, Near: true}}}
	}
	event := func(i int) time.Duration { // the least of some: others use this machine
		least := time.Hour
		for n := range 30 {
			begin := time.Now()
			p.Update([]Claim{claim(i, []netip.Addr{f.peer, f.direct}[n%2])})
			least = min(least, time.Since(begin))
		}
		return least
	}
	few := event(0)
	var all []Claim
	for i := range 60000 {
		all = append(all, claim(i, f.peer))
	}
	begin := time.Now()
	p.Replace(all)
	fill := time.Since(begin)
	begin = time.Now()
	p.Replace(all)
	again := time.Since(begin)
	many := event(30000)
	if s := p.Status(); s.Peers != 60000 {
		t.Errorf("%d peers", s.Peers)
	}
	t.Logf("60,000 peers: %v, again %v; an event %v, with few %v", fill, again, many, few)
	if fill > 5*time.Second || many > 4*few+time.Millisecond {
		t.Error("that is too much")
	}
	p.Replace(nil)
	if k, err := p.kernel.Peers.NextKeyBytes(nil); k != nil || err != nil {
		t.Errorf("left: %x, %v", k, err)
	}
}

// Containers that the map has no room for take the slow way, and it is said why, once.
func TestManyContainers(t *testing.T) {
	var log bytes.Buffer
	p, err := New(Config{Namespace: nstest.New(t), Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	c := Container{Index: 1, MAC: container, Gateway: gateway}
	const over = 4
	for i := range 65536 + over {
		c.Addrs = append(c.Addrs, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	p.SetContainers([]Container{c})
	said := strings.Count(log.String(), "\n")
	p.Use("", false, nil)
	p.Use("", true, nil)
	if again := strings.Count(log.String(), "\n"); said == 0 || again != said {
		t.Errorf("it is said %d times, and %d times with nothing new", said, again)
	}
	s := p.Status()
	if len(s.Slow) != over || strings.Contains(s.Slow[0].Why, "another container") {
		t.Errorf("%d are slow: %+v", len(s.Slow), s.Slow[:min(1, len(s.Slow))])
	}
	c.Addrs = c.Addrs[over:]
	p.SetContainers([]Container{c})
	if s := p.Status(); len(s.Slow) != 0 {
		t.Errorf("with room again: %+v", s.Slow[0])
	}
	var l programLocal
	for _, a := range c.Addrs {
		if err := p.kernel.Locals.Lookup(words(a), &l); err != nil || l.Slow != 0 {
			t.Fatalf("with room again %v is slow to the programs: %+v, %v", a, l, err)
		}
	}
}
